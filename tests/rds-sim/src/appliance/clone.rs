//! Copies of files: shared with the original where the host can, else with its holes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;

/// One read and one write.
const CHUNK: u64 = 1 << 20;

/// Copies a file at once. With FICLONE (btrfs, XFS) it is atomic against writes of others; without, it
/// is a plain copy, which is no snapshot of a file that is being written.
pub(super) fn clone_file(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new().read(true).write(true).create_new(true).open(to)?;
    if ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    tracing::debug!("{}: no reflink, copied", from.display());
    let len = source.metadata()?.len();
    target.set_len(len)?;
    let mut at = 0;
    while let Some((start, end)) = next_data(&source, at, len)? {
        copy_range(&source, start, &target, start, end - start)?;
        at = end;
    }
    Ok(())
}

/// Copies a tree of directories and files; `skip` names directories that arrive empty.
pub(super) fn clone_tree(from: &Path, to: &Path, skip: &dyn Fn(&Path) -> bool) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() && skip(&source) {
            fs::create_dir(&target)?;
        } else if kind.is_dir() {
            clone_tree(&source, &target, skip)?;
        } else if kind.is_file() {
            clone_file(&source, &target)?;
        }
    }
    Ok(())
}

/// The next stretch of data in `at..end`; without support for holes all of it is data.
pub(super) fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= end {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, end))),
        Err(e) => return Err(e.into()),
    };
    if start >= end {
        return Ok(None);
    }
    Ok(Some((start, seek(file, SeekFrom::Hole(start))?.min(end))))
}

/// Copies `len` bytes; the source ending early is an error.
pub(super) fn copy_range(
    source: &File,
    from: u64,
    target: &File,
    to: u64,
    len: u64,
) -> io::Result<()> {
    let mut done = 0;
    let mut buffer = vec![0; usize::try_from(len.min(CHUNK)).unwrap_or(0)];
    while done < len {
        let part = usize::try_from((len - done).min(CHUNK)).unwrap_or(0);
        source.read_exact_at(&mut buffer[..part], from + done)?;
        target.write_all_at(&buffer[..part], to + done)?;
        done += part as u64;
    }
    Ok(())
}

/// Makes a stretch read as zeros; where it has no data it does already.
pub(super) fn clear_range(target: &File, at: u64, len: u64) -> io::Result<()> {
    let zeros = vec![0; usize::try_from(len.min(CHUNK)).unwrap_or(0)];
    let mut cursor = at;
    while let Some((start, stop)) = next_data(target, cursor, at + len)? {
        cursor = start;
        while cursor < stop {
            let part = usize::try_from((stop - cursor).min(CHUNK)).unwrap_or(0);
            target.write_all_at(&zeros[..part], cursor)?;
            cursor += part as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cleared_reads_as_zeros_and_stays_a_hole_where_it_was_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[7; 3 << 20], 40 << 20).unwrap();
        clear_range(&file, (40 << 20) + 1, (20 << 20) - 1).unwrap();
        let text = fs::read(&path).unwrap();
        assert!(text[40 << 20] == 7 && text[(40 << 20) + 1..].iter().all(|b| *b == 0));
        use std::os::unix::fs::MetadataExt;
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < 5 << 20);
    }

    #[test]
    fn a_clone_is_equal_and_its_holes_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let file = File::create(&a).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"first", 3).unwrap();
        file.write_all_at(b"last", (64 << 20) - 4).unwrap();
        clone_file(&a, &b).unwrap();
        assert!(fs::read(&a).unwrap() == fs::read(&b).unwrap());
        use std::os::unix::fs::MetadataExt;
        assert!(fs::metadata(&b).unwrap().blocks() * 512 < 4 << 20);
        assert!(clone_file(&a, &b).is_err(), "never over something");
    }
}
