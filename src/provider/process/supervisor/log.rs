//! A container's log in the CRI format, rotated by size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::provider::LogSource;

/// A line longer than this is written in parts.
const MAX_LINE: usize = 16 * 1024;

/// Writes lines as they come in.
pub(crate) struct LogWriter {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
    files: u32,
    pending: [Vec<u8>; 2],
}

/// The name of the `n`-th newest log file, the newest being 0.
pub(crate) fn file_name(path: &Path, n: u32) -> PathBuf {
    if n == 0 { path.to_owned() } else { path.with_extension(n.to_string()) }
}

impl LogWriter {
    pub(crate) fn open(path: &Path, limit: u64, files: u32) -> io::Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        let (limit, files) = (limit.max(4096), files.max(1));
        Ok(Self { path: path.to_owned(), file, size, limit, files, pending: Default::default() })
    }

    /// Takes what was read; whole lines are written.
    pub(crate) fn write(&mut self, source: LogSource, mut data: &[u8], now: Timestamp) -> io::Result<()> {
        let mut out = Vec::new();
        let pending = &mut self.pending[source as usize];
        while !data.is_empty() {
            let room = MAX_LINE - pending.len();
            let end = data.iter().take(room).position(|b| *b == b'\n');
            let taken = end.unwrap_or(data.len().min(room));
            pending.extend_from_slice(&data[..taken]);
            data = &data[taken + usize::from(end.is_some())..];
            if end.is_some() || pending.len() >= MAX_LINE {
                line(&mut out, source, pending, end.is_some(), now);
                pending.clear();
            }
        }
        self.put(&out)
    }

    /// Writes what is left without a line's end.
    pub(crate) fn finish(&mut self, now: Timestamp) -> io::Result<()> {
        let mut out = Vec::new();
        for source in [LogSource::Stdout, LogSource::Stderr] {
            let rest = std::mem::take(&mut self.pending[source as usize]);
            if !rest.is_empty() {
                line(&mut out, source, &rest, false, now);
            }
        }
        self.put(&out)
    }

    fn put(&mut self, text: &[u8]) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if self.size > 0 && self.size + text.len() as u64 > self.limit {
            self.rotate()?;
        }
        self.size += text.len() as u64;
        self.file.write_all(text)
    }

    fn rotate(&mut self) -> io::Result<()> {
        for n in (1..self.files).rev() {
            match fs::rename(file_name(&self.path, n - 1), file_name(&self.path, n)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.files == 1 {
            fs::remove_file(&self.path)?;
        }
        self.file = open(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// `2026-11-21T08:00:00.000000000Z stdout F text`
fn line(out: &mut Vec<u8>, source: LogSource, text: &[u8], whole: bool, now: Timestamp) {
    let name = match source {
        LogSource::Stdout => "stdout",
        LogSource::Stderr => "stderr",
    };
    let tag = if whole { 'F' } else { 'P' };
    out.extend_from_slice(format!("{now:.9} {name} {tag} ").as_bytes());
    out.extend_from_slice(text);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_written_in_the_cri_format() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogWriter::open(&path, 1 << 20, 2).unwrap();
        let now = Timestamp::from_second(0).unwrap();
        log.write(LogSource::Stdout, b"one\ntw", now).unwrap();
        log.write(LogSource::Stderr, b"err\n", now).unwrap();
        log.write(LogSource::Stdout, b"o\nrest", now).unwrap();
        log.finish(now).unwrap();
        let t = "1970-01-01T00:00:00.000000000Z";
        let want = format!("{t} stdout F one\n{t} stderr F err\n{t} stdout F two\n{t} stdout P rest\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), want);
    }

    #[test]
    fn the_log_is_rotated_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogWriter::open(&path, 4096, 3).unwrap();
        for n in 0..500 {
            log.write(LogSource::Stdout, format!("line {n} {}\n", "x".repeat(50)).as_bytes(), Timestamp::now())
                .unwrap();
        }
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap()).collect();
        assert_eq!(names.len(), 3);
        assert!(names.iter().all(|e| e.metadata().unwrap().len() <= 4096));
        assert!(fs::read_to_string(&path).unwrap().contains("line 499"));
        assert!(!fs::read_to_string(file_name(&path, 1)).unwrap().contains("line 499"));
    }

    #[test]
    fn a_line_without_end_is_written_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogWriter::open(&path, 1 << 20, 1).unwrap();
        log.write(LogSource::Stdout, &[b'x'; 40_000], Timestamp::now()).unwrap();
        log.write(LogSource::Stdout, b"\n", Timestamp::now()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let tags: Vec<_> = text.lines().map(|l| l.split(' ').nth(2).unwrap()).collect();
        assert_eq!(tags, ["P", "P", "F"]);
    }
}
