//! Files for their owner only, replaced as a whole.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Writes a file beside the old one and puts it in its place; folders above it are made.
///
/// # Errors
/// Those of the file system.
pub fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let new = path.with_extension("new");
    let _left_over = std::fs::remove_file(&new);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    // So that a power cut does not bring the old one back.
    match path.parent() {
        Some(dir) if dir != Path::new("") => std::fs::File::open(dir)?.sync_all(),
        _ => Ok(()),
    }
}
