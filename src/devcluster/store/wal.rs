//! State on disk: an append-only log of changes and, now and then, a snapshot that replaces it.
//!
//! A change is handed to the operating system before anybody hears of it, so that what was acknowledged survives
//! `kill -9`. It is not forced to the disk: a power failure may cost the last seconds. Snapshots are forced to it before
//! they replace anything. Files are `snapshot-N` and `log-N`: a start reads the newest snapshot and the logs that are
//! not older. Records carry their revision, so reading one twice changes nothing. A torn last record is cut off; what
//! else is unreadable is set aside in `log-N.unreadable`, and told.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Draft, Key, Object, ResourceId};

/// A log shorter than this is never compacted.
const COMPACT_FROM: u64 = 64 << 20;
/// No record is longer: bodies are limited to 3 MiB.
const RECORD_LIMIT: u32 = 64 << 20;

const PUT: u8 = 1;
const REMOVE: u8 = 2;
/// Only carries a revision: the last one when a snapshot was taken.
const MARK: u8 = 3;

/// What the disk held.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) revision: u64,
    pub(crate) resources: HashMap<ResourceId, Vec<Object>>,
}

/// The open log.
#[derive(Debug)]
pub(crate) struct Log {
    directory: PathBuf,
    current: Mutex<Current>,
    compacting: AtomicBool,
}

#[derive(Debug)]
struct Current {
    file: File,
    number: u64,
    length: u64,
    /// Length of the last snapshot: a log is worth compacting when it has outgrown it.
    snapshot: u64,
    revision: u64,
    /// Half a record lies behind `length`, because the disk was full and it could not be removed either.
    torn: bool,
}

impl Log {
    /// Reads what is in `directory` and opens a log behind it.
    pub(crate) fn open(directory: &Path) -> io::Result<(Arc<Self>, Loaded)> {
        fs::create_dir_all(directory)?;
        let mut state = Replayed::default();
        let snapshot = numbered(directory, "snapshot-")?.into_iter().max().unwrap_or(0);
        let mut snapshot_length = 0;
        if snapshot > 0 {
            let path = directory.join(format!("snapshot-{snapshot}"));
            snapshot_length = fs::metadata(&path)?.len();
            state.read(&path)?;
        }
        let mut logs = numbered(directory, "log-")?;
        logs.sort_unstable();
        for number in logs.iter().filter(|n| **n >= snapshot) {
            let path = directory.join(format!("log-{number}"));
            let whole = state.read(&path)?;
            cut(&path, whole)?;
        }
        let number = logs.last().copied().unwrap_or(0).max(snapshot).max(1);
        let file = OpenOptions::new().create(true).append(true).open(directory.join(format!("log-{number}")))?;
        let length = file.metadata()?.len();
        let current =
            Current { file, number, length, snapshot: snapshot_length, revision: state.revision, torn: false };
        let log =
            Self { directory: directory.into(), current: Mutex::new(current), compacting: AtomicBool::new(false) };
        Ok((Arc::new(log), state.finish()))
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, id: &ResourceId, object: &Object) -> io::Result<()> {
        self.append(object.revision, &record(PUT, object.revision, id, &object.key, &object.json))
    }

    pub(crate) fn remove(&self, id: &ResourceId, key: &Key, revision: u64) -> io::Result<()> {
        self.append(revision, &record(REMOVE, revision, id, key, &[]))
    }

    fn append(&self, revision: u64, record: &[u8]) -> io::Result<()> {
        let mut current = self.current();
        let whole = current.length;
        if current.torn {
            current.file.set_len(whole)?;
            current.torn = false;
        }
        if let Err(error) = current.file.write_all(record) {
            // Half a record would hide all that follow it at the next start.
            current.torn = current.file.set_len(whole).is_err();
            return Err(error);
        }
        current.length += record.len() as u64;
        current.revision = current.revision.max(revision);
        Ok(())
    }

    /// True once for each time that the log has outgrown the state; the caller then calls [`Log::compact`].
    pub(crate) fn begin_compaction(&self) -> bool {
        let due = {
            let current = self.current();
            current.length > COMPACT_FROM.max(current.snapshot.saturating_mul(2))
        };
        due && !self.compacting.swap(true, Ordering::AcqRel)
    }

    /// Starts a new log and writes the state into a snapshot that makes the older ones unnecessary.
    pub(crate) fn compact(&self, live: impl Iterator<Item = (ResourceId, Vec<Arc<Object>>)>) -> io::Result<()> {
        let done = self.write_snapshot(live);
        self.compacting.store(false, Ordering::Release);
        done
    }

    fn write_snapshot(&self, live: impl Iterator<Item = (ResourceId, Vec<Arc<Object>>)>) -> io::Result<()> {
        let (number, revision) = {
            let mut current = self.current();
            let number = current.number + 1;
            let path = self.directory.join(format!("log-{number}"));
            current.file.sync_all()?;
            current.file = OpenOptions::new().create(true).append(true).open(path)?;
            (current.number, current.length) = (number, 0);
            (number, current.revision)
        };
        let partial = self.directory.join("snapshot.partial");
        let mut out = BufWriter::new(File::create(&partial)?);
        out.write_all(&record(MARK, revision, &ResourceId::new("", ""), &Key::new("", ""), &[]))?;
        for (id, objects) in live {
            for object in objects {
                out.write_all(&record(PUT, object.revision, &id, &object.key, &object.json))?;
            }
        }
        let file = out.into_inner()?;
        file.sync_all()?;
        self.current().snapshot = file.metadata()?.len();
        fs::rename(&partial, self.directory.join(format!("snapshot-{number}")))?;
        // The name must be on the disk before what it replaces is gone.
        File::open(&self.directory)?.sync_all()?;
        for prefix in ["snapshot-", "log-"] {
            for old in numbered(&self.directory, prefix)?.into_iter().filter(|old| *old < number) {
                fs::remove_file(self.directory.join(format!("{prefix}{old}")))?;
            }
        }
        Ok(())
    }
}

/// Cuts a log behind its last whole record. A tear at its end is the write that was interrupted; when whole records may
/// follow, the disk has lost something, and what is left is kept aside for whoever wants to look.
fn cut(path: &Path, whole: u64) -> io::Result<()> {
    let length = fs::metadata(path)?.len();
    if length == whole {
        return Ok(());
    }
    let mut rest = Vec::new();
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(whole))?;
    file.read_to_end(&mut rest)?;
    let announced = rest.first_chunk::<4>().map(|length| u64::from(u32::from_le_bytes(*length)) + 8);
    let interrupted = rest.iter().all(|byte| *byte == 0) || announced.is_none_or(|length| length >= rest.len() as u64);
    if interrupted {
        tracing::info!(bytes = rest.len(), "the log ends in half a record, which nobody was told of; it is cut off");
    } else {
        let aside = path.with_extension("unreadable");
        fs::write(&aside, &rest)?;
        tracing::error!(bytes = rest.len(), aside = %aside.display(), "the log is damaged; what follows is set aside");
    }
    OpenOptions::new().write(true).open(path)?.set_len(whole)
}

#[derive(Default)]
struct Replayed {
    revision: u64,
    objects: BTreeMap<(ResourceId, Key), (u64, Vec<u8>)>,
}

impl Replayed {
    /// Applies a file's records and returns the length of its whole ones.
    fn read(&mut self, path: &Path) -> io::Result<u64> {
        let mut input = BufReader::new(File::open(path)?);
        let mut whole = 0;
        while let Some(payload) = next(&mut input)? {
            let Some(read) = Record::parse(&payload) else { break };
            whole += 8 + payload.len() as u64;
            self.revision = self.revision.max(read.revision);
            let at = (read.id, read.key);
            let newer = self.objects.get(&at).is_none_or(|(revision, _)| *revision < read.revision);
            match read.operation {
                PUT if newer => drop(self.objects.insert(at, (read.revision, read.json))),
                REMOVE if newer => drop(self.objects.remove(&at)),
                _ => {}
            }
        }
        Ok(whole)
    }

    fn finish(self) -> Loaded {
        let mut loaded = Loaded { revision: self.revision, ..Loaded::default() };
        for ((id, _), (revision, json)) in self.objects {
            match serde_json::from_slice(&json) {
                Ok(value) => loaded.resources.entry(id).or_default().push(Draft::new(&value, &[]).stamp(revision)),
                Err(error) => tracing::warn!(%error, resource = &*id.plural, "skipping an unreadable object"),
            }
        }
        loaded
    }
}

struct Record {
    operation: u8,
    revision: u64,
    id: ResourceId,
    key: Key,
    json: Vec<u8>,
}

impl Record {
    fn parse(payload: &[u8]) -> Option<Self> {
        fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
            let (length, tail) = rest.split_first_chunk::<2>()?;
            let (text, tail) = tail.split_at_checked(u16::from_le_bytes(*length).into())?;
            *rest = tail;
            std::str::from_utf8(text).ok()
        }
        let (operation, rest) = payload.split_first()?;
        let (revision, mut rest) = rest.split_first_chunk::<8>()?;
        let id = ResourceId::new(text(&mut rest)?, text(&mut rest)?);
        let key = Key::new(text(&mut rest)?, text(&mut rest)?);
        Some(Self { operation: *operation, revision: u64::from_le_bytes(*revision), id, key, json: rest.to_vec() })
    }
}

fn record(operation: u8, revision: u64, id: &ResourceId, key: &Key, json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() + 96);
    out.extend_from_slice(&[0; 8]);
    out.push(operation);
    out.extend_from_slice(&revision.to_le_bytes());
    for text in [&id.group, &id.plural, &key.namespace, &key.name] {
        // Names are limited to 253 bytes long before they come here.
        out.extend_from_slice(&(text.len() as u16).to_le_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out.extend_from_slice(json);
    let (length, sum) = ((out.len() - 8) as u32, checksum(&out[8..]));
    out[..4].copy_from_slice(&length.to_le_bytes());
    out[4..8].copy_from_slice(&sum.to_le_bytes());
    out
}

/// The next whole record's payload; `None` at the end or where the file is torn.
fn next(input: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; 8];
    if !fill(input, &mut head)? {
        return Ok(None);
    }
    let (length, sum) = (u32::from_le_bytes([head[0], head[1], head[2], head[3]]), &head[4..]);
    if length > RECORD_LIMIT {
        return Ok(None);
    }
    let mut payload = vec![0; length as usize];
    let whole = fill(input, &mut payload)? && checksum(&payload).to_le_bytes() == *sum;
    Ok(whole.then_some(payload))
}

fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match input.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// FNV-1a over eight bytes at a time, folded: finds torn and overwritten records, which is all it is for.
fn checksum(bytes: &[u8]) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut chunks = bytes.chunks_exact(8);
    let mut mix = |word: u64| hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    for chunk in &mut chunks {
        mix(u64::from_le_bytes(chunk.try_into().unwrap_or_default()));
    }
    chunks.remainder().iter().for_each(|byte| mix((*byte).into()));
    mix(bytes.len() as u64);
    (hash ^ (hash >> 32)) as u32
}

fn numbered(directory: &Path, prefix: &str) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(|n| n.strip_prefix(prefix)).and_then(|n| n.parse::<u64>().ok()));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Expect, Store};
    use serde_json::json;

    fn draft(name: &str, value: u32) -> Draft {
        Draft::new(&json!({"metadata": {"name": name, "namespace": "ns"}, "value": value}), &[])
    }

    fn reopen(directory: &Path) -> (Arc<Store>, Arc<crate::store::Resource>) {
        let store = Store::open(Some(Log::open(directory).unwrap()));
        let resource = store.resource(&ResourceId::new("", "things"));
        (store, resource)
    }

    #[test]
    fn what_was_acknowledged_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let (store, resource) = reopen(directory.path());
        let a = store.put(&resource, draft("a", 1), Expect::Absent).unwrap();
        let b = store.put(&resource, draft("b", 1), Expect::Absent).unwrap();
        store.put(&resource, draft("a", 2), Expect::Revision(a.revision)).unwrap();
        store.remove(&resource, &b.key, b.revision).unwrap();
        let revision = store.revision();
        let (store, resource) = reopen(directory.path());
        assert_eq!(store.revision(), revision);
        assert_eq!(resource.len(), 1);
        assert_eq!(resource.get(&Key::new("ns", "a")).unwrap().value()["value"], 2);
    }

    #[test]
    fn a_torn_last_record_is_cut_off_and_writing_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log-1");
        let (store, resource) = reopen(directory.path());
        store.put(&resource, draft("a", 1), Expect::Absent).unwrap();
        let begun = fs::read(&path).unwrap();
        let tears = [vec![9], vec![9, 0, 0, 0, 1], vec![0; 100], begun[..begun.len() - 1].to_vec()];
        for (n, tear) in tears.iter().enumerate() {
            OpenOptions::new().append(true).open(&path).unwrap().write_all(tear).unwrap();
            let (store, resource) = reopen(directory.path());
            store.put(&resource, draft(&format!("b{n}"), 1), Expect::Absent).unwrap();
            assert_eq!(reopen(directory.path()).1.len(), 2 + n);
        }
        assert!(!directory.path().join("log-1.unreadable").exists());
    }

    #[test]
    fn a_damaged_log_is_set_aside_and_not_thrown_away() {
        let directory = tempfile::tempdir().unwrap();
        let (store, resource) = reopen(directory.path());
        for name in ["a", "b", "c"] {
            store.put(&resource, draft(name, 1), Expect::Absent).unwrap();
        }
        let path = directory.path().join("log-1");
        let mut bytes = fs::read(&path).unwrap();
        let third = bytes.len() / 3;
        bytes[third + 30] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(reopen(directory.path()).1.len(), 1);
        assert_eq!(fs::read(directory.path().join("log-1.unreadable")).unwrap(), bytes[third..]);
        assert_eq!(reopen(directory.path()).1.len(), 1, "and only once");
    }

    #[test]
    fn a_snapshot_taken_while_others_write_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (log, loaded) = Log::open(directory.path()).unwrap();
        let store = Store::open(Some((log.clone(), loaded)));
        let resource = store.resource(&ResourceId::new("", "things"));
        std::thread::scope(|scope| {
            for writer in 0..3 {
                let (store, resource) = (&store, &resource);
                scope.spawn(move || {
                    for n in 0..200 {
                        let name = format!("{writer}-{n}");
                        let made = store.put(resource, draft(&name, 1), Expect::Absent).unwrap();
                        if n % 3 == 0 {
                            store.remove(resource, &made.key, made.revision).unwrap();
                        }
                    }
                });
            }
            for _ in 0..5 {
                let live =
                    [&resource].into_iter().map(|r| (r.id.clone(), r.read().objects.values().cloned().collect()));
                log.compact(live).unwrap();
            }
        });
        let (again, read) = reopen(directory.path());
        assert_eq!((read.len(), again.revision()), (resource.len(), store.revision()));
        assert_eq!(read.len(), 3 * 133);
    }

    #[test]
    fn a_snapshot_replaces_the_logs_before_it() {
        let directory = tempfile::tempdir().unwrap();
        let (log, loaded) = Log::open(directory.path()).unwrap();
        let store = Store::open(Some((log.clone(), loaded)));
        let resource = store.resource(&ResourceId::new("", "things"));
        let a = store.put(&resource, draft("a", 1), Expect::Absent).unwrap();
        log.compact([(resource.id.clone(), vec![a.clone()])].into_iter()).unwrap();
        store.put(&resource, draft("b", 1), Expect::Absent).unwrap();
        assert!(!directory.path().join("log-1").exists());
        let (again, resource) = reopen(directory.path());
        assert_eq!((resource.len(), again.revision()), (2, store.revision()));
    }
}
