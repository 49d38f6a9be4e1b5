//! The simulator.
use std::sync::Arc;
use super::{Provider, ProviderContext, Result, ProviderError};
use crate::api::ProviderSpec;
/// Makes mock providers.
#[derive(Default)]
pub struct MockFactory {}
impl super::registry::Factory for MockFactory {
    fn build(&self, _spec: &ProviderSpec, _context: ProviderContext) -> Result<Arc<dyn Provider>> {
        Err(ProviderError::unavailable("soon"))
    }
}
