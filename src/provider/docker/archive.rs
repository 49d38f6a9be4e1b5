//! Files as tar archives, the form in which engines take and give them. Blocks on files.

use std::io::{self, Read as _};
use std::path::Path;

use bytes::Bytes;

/// Larger volumes than this hold something else than configuration.
const LIMIT: u64 = 64 << 20;

/// The content of a folder, symlinks as they are, under `prefix` when that is not empty.
///
/// `..data` comes last: whoever unpacks entries in their order has all files of a version before it is shown.
pub(super) fn pack(source: &Path, prefix: &str) -> io::Result<Bytes> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    let mut total = 0;
    let top = Path::new(prefix);
    if source.symlink_metadata()?.is_dir() {
        if !prefix.is_empty() {
            builder.append_dir(top, source)?;
        }
        add_dir(&mut builder, source, top, &mut total)?;
    } else {
        builder.append_path_with_name(source, top)?;
    }
    builder.into_inner().map(Bytes::from)
}

fn add_dir(builder: &mut tar::Builder<Vec<u8>>, dir: &Path, at: &Path, total: &mut u64) -> io::Result<()> {
    let mut entries = std::fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    // Folders of versions, then the link to one, then the links through it.
    entries.sort_by_key(|e| {
        let kind = e.file_type().map(|t| t.is_symlink()).unwrap_or(false);
        (kind, e.file_name() != "..data", e.file_name())
    });
    for entry in entries {
        let (path, name) = (entry.path(), at.join(entry.file_name()));
        let meta = path.symlink_metadata()?;
        if meta.is_dir() {
            builder.append_dir(&name, &path)?;
            add_dir(builder, &path, &name, total)?;
            continue;
        }
        *total += meta.len();
        if *total > LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a volume is too large to be copied"));
        }
        builder.append_path_with_name(&path, &name)?;
    }
    Ok(())
}

/// The beginning of the first file in an archive.
pub(super) fn first_file(archive: &[u8], limit: u64) -> io::Result<Bytes> {
    for entry in tar::Archive::new(archive).entries()? {
        let entry = entry?;
        if entry.header().entry_type().is_file() {
            let mut text = Vec::new();
            entry.take(limit).read_to_end(&mut text)?;
            return Ok(text.into());
        }
    }
    Ok(Bytes::new())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_version_is_complete_before_it_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let version = dir.path().join("..v1");
        std::fs::create_dir(&version).unwrap();
        std::fs::write(version.join("key"), "value").unwrap();
        symlink("..v1", dir.path().join("..data")).unwrap();
        symlink("..data/key", dir.path().join("key")).unwrap();
        let packed = pack(dir.path(), "").unwrap();
        let names: Vec<_> = tar::Archive::new(&*packed)
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["..v1", "..v1/key", "..data", "key"]);
        assert_eq!(&*first_file(&packed, 3).unwrap(), b"val");
        let one = pack(&version.join("key"), "etc/key").unwrap();
        assert_eq!(&*first_file(&one, 10).unwrap(), b"value");
    }
}
