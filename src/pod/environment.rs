//! stub
pub(crate) struct ObjectCache { client: kube::Client }
impl ObjectCache { pub(crate) fn new(client: kube::Client) -> Self { Self { client } } }
