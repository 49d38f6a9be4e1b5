//! A service for virtual nodes of type `grpc` that runs pods as processes of its machine.
//!
//! Images are not looked at: a container is its `command` and `args`, run here. Pods end with this process.
//!
//! | module | what it is |
//! |---|---|
//! | [`service`] | the calls of the protocol |
//! | `pods` | the pods of all nodes, as processes |
//! | `log` | what a container has written |

mod log;
mod pods;
pub mod service;

use std::error::Error;

use tonic::service::Routes;
use tonic::{Request, Status};
use vnode_proto::v1::provider_service_server::ProviderServiceServer;

pub use service::Service;

/// All that the server offers: the pods, their health, and reflection. With a token, only those who know it are served.
pub async fn routes(service: Service, token: Option<String>) -> Result<Routes, Box<dyn Error>> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ProviderServiceServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(vnode_proto::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let wanted = token.map(|token| format!("Bearer {token}"));
    let check = move |request: Request<()>| match &wanted {
        Some(wanted)
            if request.metadata().get("authorization").is_none_or(|got| got.as_bytes() != wanted.as_bytes()) =>
        {
            Err(Status::unauthenticated("wrong token"))
        }
        _ => Ok(request),
    };
    let pods = ProviderServiceServer::with_interceptor(service, check);
    Ok(Routes::new(health_service).add_service(reflection).add_service(pods))
}
