//! Files and folders for their owner only. On Windows they are where the system keeps a user's own, and have its protection.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Result, Write as _};
use std::path::Path;

/// Makes a folder, and those above it.
///
/// # Errors
/// Those of the file system.
pub fn make_folder(path: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)
}

/// Makes a file that does not exist yet.
///
/// # Errors
/// Those of the file system.
pub fn create_new(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.write(true).create_new(true).open(path)
}

/// Writes a file beside the old one and puts it in its place; folders above it are made.
///
/// # Errors
/// Those of the file system.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let new = path.with_extension("new");
    let _left_over = std::fs::remove_file(&new);
    let mut file = create_new(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&new, path)?;
    // So that a power cut does not bring the old one back. Windows opens no folders.
    match path.parent() {
        Some(dir) if cfg!(unix) && dir != Path::new("") => File::open(dir)?.sync_all(),
        _ => Ok(()),
    }
}
