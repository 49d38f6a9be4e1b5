//! JSON in little room: deflated with what nearly all pods have in common as its dictionary.

use std::sync::{Mutex, PoisonError};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// What most pods say, the most usual last: what is near the end costs the least to refer to. It may be changed at
/// any time, since nothing that was made with it leaves the process.
const DICTIONARY: &[u8] = include_bytes!("dictionary.txt");

/// States of the coder, which take much longer to make than to use: as many as were ever in use at the same time.
struct Pool<T>(Mutex<Vec<T>>);

impl<T> Pool<T> {
    fn with<R>(&self, make: impl FnOnce() -> T, run: impl FnOnce(&mut T) -> R) -> R {
        let free = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = free().pop().unwrap_or_else(make);
        let result = run(&mut state);
        free().push(state);
        result
    }
}

static DEFLATE: Pool<Compress> = Pool(Mutex::new(Vec::new()));
static INFLATE: Pool<Decompress> = Pool(Mutex::new(Vec::new()));

/// The bytes deflated; `None` when that gains nothing.
pub(super) fn deflate(bytes: &[u8]) -> Option<Box<[u8]>> {
    let mut out = Vec::with_capacity(bytes.len());
    DEFLATE.with(
        || Compress::new(Compression::fast(), false),
        |state| {
            state.reset();
            state.set_dictionary(DICTIONARY).ok()?;
            // What does not fit is not smaller.
            matches!(state.compress_vec(bytes, &mut out, FlushCompress::Finish), Ok(Status::StreamEnd)).then_some(())
        },
    )?;
    Some(out.into())
}

/// The `length` bytes that were deflated; `None` when these are none such.
pub(super) fn inflate(small: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(length);
    INFLATE.with(
        || Decompress::new(false),
        |state| {
            state.reset(false);
            state.set_dictionary(DICTIONARY).ok()?;
            matches!(state.decompress_vec(small, &mut out, FlushDecompress::Finish), Ok(Status::StreamEnd))
                .then_some(())
        },
    )?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_deflated_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..4000), times in 1_usize..4) {
            let bytes = bytes.repeat(times);
            if let Some(small) = deflate(&bytes) {
                prop_assert!(small.len() <= bytes.len());
                prop_assert_eq!(inflate(&small, bytes.len()), Some(bytes));
            }
        }
    }

    #[test]
    fn what_pods_have_in_common_takes_no_room() {
        let small = deflate(DICTIONARY).unwrap();
        assert!(small.len() < DICTIONARY.len() / 20, "{}", small.len());
        assert_eq!(inflate(&small, DICTIONARY.len()).unwrap(), DICTIONARY);
        assert_eq!(inflate(&small[..5], DICTIONARY.len()), None);
    }
}
