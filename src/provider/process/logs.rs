//! Reading a container's log: all its files, oldest first, then what is written from there on.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Seek as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use jiff::Timestamp;
use tokio_util::codec::FramedRead;

use super::client::{self, Connection};
use super::layout::LOG;
use super::supervisor::log::file_name;
use super::wire::{Frame, Frames, Request};
use crate::provider::{LogLine, LogOptions, LogSource, LogStream, ProviderError, Result};

/// More files than this are nobody's.
const MAX_FILES: u32 = 100;

/// Lines of the files that there are, and those that come.
struct Tail {
    path: PathBuf,
    file: Option<(BufReader<File>, u64)>,
    /// A line whose end is not written yet.
    part: Vec<u8>,
}

/// Opens a container's log.
pub(super) async fn open(dir: &Path, options: &LogOptions) -> Result<LogStream> {
    let path = dir.join(LOG);
    // Subscribed first, so that nothing that is written while we read is missed.
    let grown = match options.follow {
        true => client::ask(dir, &Request::Follow).await.map_err(|e| failed(&path, e))?,
        false => None,
    };
    let (wanted, at) = (options.clone(), path.clone());
    let read = tokio::task::spawn_blocking(move || Tail::read_all(at, &wanted)).await;
    let (lines, tail) = read.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(|e| failed(&path, e))?;
    let existing = stream::iter(lines.into_iter().map(Ok));
    Ok(match grown {
        None => existing.boxed(),
        Some(connection) => existing.chain(follow(tail, connection)).boxed(),
    })
}

fn failed(path: &Path, error: io::Error) -> ProviderError {
    ProviderError::Unavailable {
        message: format!("reading {}", path.display()),
        retry_after: None,
        source: Some(Box::new(error)),
    }
}

fn follow(tail: Tail, connection: Connection) -> impl futures::Stream<Item = Result<LogLine>> + Send + 'static {
    let frames = FramedRead::new(connection.read, Frames);
    // The writing half is kept, or the supervisor would take us for gone.
    let state = (Some(tail), frames, connection.write);
    let batches = stream::unfold(state, |(tail, mut frames, write)| async move {
        let tail = tail?;
        let last = !matches!(frames.next().await, Some(Ok(Frame::Grown)));
        let read = tokio::task::spawn_blocking(move || {
            let mut tail = tail;
            let lines = tail.read_more(last);
            (lines, tail)
        });
        let (lines, tail) = match read.await {
            Ok((Ok(lines), tail)) => (lines, Some(tail).filter(|_| !last)),
            Ok((Err(error), tail)) => return Some((vec![Err(failed(&tail.path, error))], (None, frames, write))),
            Err(_) => return None,
        };
        Some((lines.into_iter().map(Ok).collect(), (tail, frames, write)))
    });
    batches.flat_map(stream::iter)
}

impl Tail {
    fn read_all(path: PathBuf, options: &LogOptions) -> io::Result<(VecDeque<LogLine>, Self)> {
        let mut tail = Self { path, file: None, part: Vec::new() };
        let mut lines = VecDeque::new();
        let keep = options.tail.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let oldest = (1..MAX_FILES).take_while(|n| file_name(&tail.path, *n).exists()).last().unwrap_or(0);
        for n in (0..=oldest).rev() {
            let path = file_name(&tail.path, n);
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            tail.file = Some((BufReader::new(file.try_clone()?), file.metadata()?.ino()));
            tail.drain(|line| {
                if options.since.is_none_or(|since| line.time >= since) {
                    lines.push_back(line);
                }
                if keep.is_some_and(|keep| lines.len() > keep) {
                    lines.pop_front();
                }
            })?;
        }
        Ok((lines, tail))
    }

    /// What was written since; `last` when nothing more will be.
    fn read_more(&mut self, last: bool) -> io::Result<Vec<LogLine>> {
        let mut lines = Vec::new();
        self.drain(|line| lines.push(line))?;
        // Renamed files are read to their end before the next is begun.
        for n in (0..MAX_FILES).rev() {
            let path = file_name(&self.path, n);
            let Ok(found) = std::fs::metadata(&path) else { continue };
            let known = self.file.as_ref().map(|(_, inode)| *inode);
            if known == Some(found.ino()) || (known.is_some() && self.is_older(n, known)) {
                continue;
            }
            let file = File::open(&path)?;
            self.file = Some((BufReader::new(file), found.ino()));
            self.drain(|line| lines.push(line))?;
        }
        if last && !self.part.is_empty() {
            let part = std::mem::take(&mut self.part);
            lines.extend(parse(&part));
        }
        Ok(lines)
    }

    /// The file of this number comes before the one that is being read.
    fn is_older(&self, n: u32, known: Option<u64>) -> bool {
        let place = (0..MAX_FILES)
            .find(|n| std::fs::metadata(file_name(&self.path, *n)).is_ok_and(|found| Some(found.ino()) == known));
        place.is_some_and(|place| n > place)
    }

    fn drain(&mut self, mut each: impl FnMut(LogLine)) -> io::Result<()> {
        let Some((file, _)) = &mut self.file else { return Ok(()) };
        // Forgets an end of file that was seen before.
        let at = file.stream_position()?;
        file.seek(io::SeekFrom::Start(at))?;
        loop {
            let n = file.read_until(b'\n', &mut self.part)?;
            if n == 0 || self.part.last() != Some(&b'\n') {
                return Ok(());
            }
            if let Some(line) = parse(&self.part) {
                each(line);
            }
            self.part.clear();
        }
    }
}

/// One line of the CRI format.
fn parse(line: &[u8]) -> Option<LogLine> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut fields = line.splitn(4, |b| *b == b' ');
    let mut next = || fields.next();
    let time: Timestamp = std::str::from_utf8(next()?).ok()?.parse().ok()?;
    let source = if next()? == b"stderr" { LogSource::Stderr } else { LogSource::Stdout };
    let whole = next()? == b"F";
    let mut text = next().unwrap_or_default().to_vec();
    if whole {
        text.push(b'\n');
    }
    Some(LogLine { time, source, text: Bytes::from(text) })
}

#[cfg(test)]
mod tests {
    use super::super::supervisor::log::LogWriter;
    use super::*;

    fn texts(lines: impl IntoIterator<Item = LogLine>) -> Vec<String> {
        lines.into_iter().map(|l| String::from_utf8(l.text.to_vec()).unwrap()).collect()
    }

    #[test]
    fn what_was_written_is_read_over_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOG);
        let mut log = LogWriter::open(&path, 4096, 4).unwrap();
        let mut put = |n: u32| {
            let text = format!("line {n} {}\n", "x".repeat(100));
            log.write(LogSource::Stdout, text.as_bytes(), Timestamp::now()).unwrap();
        };
        (0..10).for_each(&mut put);
        let (lines, mut tail) = Tail::read_all(path.clone(), &LogOptions::default()).unwrap();
        assert_eq!(lines.len(), 10);
        (10..60).for_each(&mut put);
        let more = texts(tail.read_more(false).unwrap());
        assert_eq!(more.len(), 50, "none is lost and none comes twice");
        assert!(more[0].starts_with("line 10 ") && more[49].starts_with("line 59 "));
        assert!(tail.read_more(false).unwrap().is_empty());
        put(60);
        assert_eq!(tail.read_more(true).unwrap().len(), 1);
        let options = LogOptions { tail: Some(3), ..LogOptions::default() };
        let (lines, _) = Tail::read_all(path, &options).unwrap();
        assert!(texts(lines)[0].starts_with("line 58 "));
    }
}
