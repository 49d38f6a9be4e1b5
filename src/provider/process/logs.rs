//! Reading a container's log: all its files, oldest first, then what is written from there on.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _};
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
/// How much is read before it is handed on: a log of any size costs this much memory.
const BATCH: usize = 256 * 1024;
/// How much is looked through at a time for the beginning of the last lines.
const BLOCK: usize = 64 * 1024;

/// Lines of the files that there are, and those that come.
struct Tail {
    path: PathBuf,
    /// Files to read, the oldest first, with their inodes. They are open, so renaming them changes nothing.
    files: VecDeque<(BufReader<File>, u64)>,
    /// The file that was read last, which may still grow.
    file: Option<(BufReader<File>, u64)>,
    /// A line whose end is not written yet.
    part: Vec<u8>,
    since: Option<Timestamp>,
}

/// What comes of a look at the files.
struct Batch {
    lines: Vec<LogLine>,
    /// There is more to read at once.
    more: bool,
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
    let tail = tokio::task::spawn_blocking(move || Tail::open(at, &wanted)).await;
    let tail = tail.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(|e| failed(&path, e))?;
    Ok(lines(tail, grown).boxed())
}

fn failed(path: &Path, error: io::Error) -> ProviderError {
    ProviderError::Unavailable {
        message: format!("reading {}", path.display()),
        retry_after: None,
        source: Some(Box::new(error)),
    }
}

/// What there is, then what is written until the supervisor says that there will be no more. Nothing is read before
/// it is asked for.
fn lines(tail: Tail, grown: Option<Connection>) -> impl futures::Stream<Item = Result<LogLine>> + Send + 'static {
    // The writing half is kept, or the supervisor would take us for gone.
    let grown = grown.map(|connection| (FramedRead::new(connection.read, Frames), connection.write));
    struct State<G> {
        tail: Option<Tail>,
        grown: G,
        /// There is more to read without waiting.
        more: bool,
        last: bool,
    }
    let state = State { tail: Some(tail), last: grown.is_none(), grown, more: true };
    let batches = stream::unfold(state, |mut state| async move {
        let mut tail = state.tail.take()?;
        if !state.more {
            let frame = match &mut state.grown {
                Some((frames, _)) if !state.last => frames.next().await,
                _ => return None,
            };
            state.last = !matches!(frame, Some(Ok(Frame::Grown)));
        }
        let last = state.last;
        let read = tokio::task::spawn_blocking(move || (tail.read(last), tail)).await;
        match read {
            Ok((Ok(batch), tail)) => {
                state.more = batch.more;
                state.tail = Some(tail);
                Some((batch.lines.into_iter().map(Ok).collect(), state))
            }
            Ok((Err(error), tail)) => Some((vec![Err(failed(&tail.path, error))], state)),
            Err(_) => None,
        }
    });
    batches.flat_map(stream::iter)
}

impl Tail {
    /// Opens the files that are wanted, at the line to begin with.
    fn open(path: PathBuf, options: &LogOptions) -> io::Result<Self> {
        let mut files = VecDeque::new();
        let mut left = options.tail;
        for n in 0..MAX_FILES {
            let mut file = match File::open(file_name(&path, n)) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound && n == 0 => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            };
            let found = file.metadata()?;
            if files.iter().any(|(_, inode)| *inode == found.ino()) {
                // It was renamed while we looked.
                continue;
            }
            if let Some(left) = &mut left {
                let (start, lines) = last_lines(&mut file, found.len(), *left)?;
                file.seek(io::SeekFrom::Start(start))?;
                *left -= lines;
            }
            files.push_front((BufReader::new(file), found.ino()));
            if left == Some(0) {
                break;
            }
        }
        Ok(Self { path, files, file: None, part: Vec::new(), since: options.since })
    }

    /// What there is to read, up to a batch of it; `last` when nothing more will be written.
    fn read(&mut self, last: bool) -> io::Result<Batch> {
        let (mut lines, mut size) = (Vec::new(), 0);
        loop {
            if !self.drain(&mut lines, &mut size)? {
                return Ok(Batch { lines, more: true });
            }
            match self.files.pop_front() {
                Some(next) => self.file = Some(next),
                None if self.find_newer()? => {}
                None => break,
            }
        }
        if last && !self.part.is_empty() {
            let part = std::mem::take(&mut self.part);
            lines.extend(parse(&part));
        }
        Ok(Batch { lines, more: false })
    }

    /// Opens what has taken the place of the file that was read last; false when nothing has.
    fn find_newer(&mut self) -> io::Result<bool> {
        let known = self.file.as_ref().map(|(_, inode)| *inode);
        for n in 0..MAX_FILES {
            let file = match File::open(file_name(&self.path, n)) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound && n == 0 => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            };
            let found = file.metadata()?.ino();
            if Some(found) == known {
                break;
            }
            if !self.files.iter().any(|(_, inode)| *inode == found) {
                self.files.push_front((BufReader::new(file), found));
            }
        }
        Ok(!self.files.is_empty())
    }

    /// Reads the file to its end; false when a batch was full before.
    fn drain(&mut self, lines: &mut Vec<LogLine>, size: &mut usize) -> io::Result<bool> {
        let Some((file, _)) = &mut self.file else { return Ok(true) };
        // Forgets an end of file that was seen before.
        let at = file.stream_position()?;
        file.seek(io::SeekFrom::Start(at))?;
        loop {
            if *size >= BATCH {
                return Ok(false);
            }
            let n = file.read_until(b'\n', &mut self.part)?;
            *size += n;
            if n == 0 || self.part.last() != Some(&b'\n') {
                return Ok(true);
            }
            let line = parse(&self.part).filter(|line| self.since.is_none_or(|since| line.time >= since));
            lines.extend(line);
            self.part.clear();
        }
    }
}

/// Where the last lines of a file begin, and how many they are: as many as asked for, or all that there are. Only the
/// end of the file is read.
fn last_lines(file: &mut File, len: u64, wanted: u64) -> io::Result<(u64, u64)> {
    if wanted == 0 {
        return Ok((len, 0));
    }
    let (mut end, mut lines) = (len, 0);
    let mut block = vec![0; BLOCK];
    // What has no end yet is a line as well.
    let mut open = false;
    while end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        // At most a block, so it fits.
        let part = &mut block[..(end - start) as usize];
        file.seek(io::SeekFrom::Start(start))?;
        file.read_exact(part)?;
        for (at, byte) in part.iter().enumerate().rev() {
            let position = start + at as u64;
            if *byte != b'\n' {
                open = true;
                continue;
            }
            lines += u64::from(open);
            if lines == wanted {
                return Ok((position + 1, lines));
            }
            // This ends the line before it.
            open = true;
        }
        end = start;
    }
    Ok((0, lines + u64::from(open)))
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
        let mut tail = Tail::open(path.clone(), &LogOptions::default()).unwrap();
        assert_eq!(tail.read(false).unwrap().lines.len(), 10);
        (10..60).for_each(&mut put);
        let more = texts(tail.read(false).unwrap().lines);
        assert_eq!(more.len(), 50, "none is lost and none comes twice");
        assert!(more[0].starts_with("line 10 ") && more[49].starts_with("line 59 "));
        assert!(tail.read(false).unwrap().lines.is_empty());
        put(60);
        assert_eq!(tail.read(true).unwrap().lines.len(), 1);
        // Over the end of a file as well.
        for wanted in [0, 1, 3, 40, 61, 1000] {
            let options = LogOptions { tail: Some(wanted), ..LogOptions::default() };
            let lines = texts(Tail::open(path.clone(), &options).unwrap().read(true).unwrap().lines);
            let all = texts(Tail::open(path.clone(), &LogOptions::default()).unwrap().read(true).unwrap().lines);
            let from = all.len().saturating_sub(usize::try_from(wanted).unwrap());
            assert_eq!(lines, all[from..], "{wanted}");
        }
    }

    #[test]
    fn the_last_lines_of_a_file_are_found_from_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let long = "y".repeat(3 * BLOCK);
        for (text, wanted, want) in [
            ("", 3, (0, 0)),
            ("a\nb\nc\n", 0, (6, 0)),
            ("a\nb\nc\n", 1, (4, 1)),
            ("a\nb\nc\n", 2, (2, 2)),
            ("a\nb\nc\n", 3, (0, 3)),
            ("a\nb\nc\n", 9, (0, 3)),
            ("a\nb\nc", 0, (5, 0)),
            ("a\nb\nc", 1, (4, 1)),
            ("a\nb\nc", 3, (0, 3)),
            ("\n\n", 1, (1, 1)),
            (&format!("a\n{long}\nb\n"), 2, (2, 2)),
        ] {
            std::fs::write(&path, text).unwrap();
            let mut file = File::open(&path).unwrap();
            let got = last_lines(&mut file, text.len() as u64, wanted).unwrap();
            assert_eq!(got, want, "{} {wanted}", text.len());
        }
    }

    #[test]
    fn a_large_log_comes_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOG);
        let mut log = LogWriter::open(&path, 64 << 20, 2).unwrap();
        for n in 0..10_000 {
            let text = format!("line {n} {}\n", "x".repeat(100));
            log.write(LogSource::Stdout, text.as_bytes(), Timestamp::now()).unwrap();
        }
        let mut tail = Tail::open(path, &LogOptions::default()).unwrap();
        let (mut batches, mut lines) = (0, 0);
        loop {
            let batch = tail.read(true).unwrap();
            batches += 1;
            lines += batch.lines.len();
            assert!(batch.lines.iter().map(|l| l.text.len()).sum::<usize>() <= BATCH);
            if !batch.more {
                break;
            }
        }
        assert!(batches > 3 && lines == 10_000, "{batches} {lines}");
    }
}
