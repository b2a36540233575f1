//! The app's window: the page, in a browser that shows nothing else around it, or else in whichever the owner has.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// Browsers that can show a page without their own buttons.
const WINDOWS: [&str; 5] =
    ["chromium", "chromium-browser", "google-chrome-stable", "microsoft-edge-stable", "brave-browser"];

/// Shows the page that this file leads to.
///
/// # Errors
/// There is no browser.
pub fn open(file: &Path) -> io::Result<()> {
    let mut app = OsString::from("--app=file://");
    app.push(file);
    match WINDOWS.iter().find(|name| cfg!(target_os = "linux") && is_there(name)) {
        Some(browser) => {
            let mut command = Command::new(browser);
            command.arg(app).args(["--class=hebtor-volunteer", "--no-first-run"]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn()?;
            // Or it stays in the list of processes when it has ended.
            std::thread::spawn(move || child.wait());
            Ok(())
        }
        None => open::that_detached(file),
    }
}

/// Is there such a program?
fn is_there(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}
