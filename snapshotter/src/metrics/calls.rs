//! Counting gRPC calls: a layer around all services.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use tonic::Code;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::Meters;

/// Puts [`Metered`] around a service.
#[derive(Clone, Debug)]
pub struct MeteredLayer(pub Meters);

impl<S> Layer<S> for MeteredLayer {
    type Service = Metered<S>;

    fn layer(&self, inner: S) -> Metered<S> {
        Metered { inner, meters: self.0.clone() }
    }
}

/// Counts the calls of a service when their answers begin. One whose caller goes away before is not counted.
#[derive(Clone, Debug)]
pub struct Metered<S> {
    inner: S,
    meters: Meters,
}

impl<S, Q, A> Service<Request<Q>> for Metered<S>
where
    S: Service<Request<Q>, Response = Response<A>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    A: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let (method, began) = (request.uri().path().trim_start_matches('/').to_owned(), Instant::now());
        let (meters, answer) = (self.meters.clone(), self.inner.call(request));
        Box::pin(async move {
            let answer = answer.await?;
            // Only an answer that is nothing but an error has its status at its beginning (gRPC over HTTP/2, "Trailers-Only").
            let status = answer.headers().get("grpc-status");
            let code = status.map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()));
            // Names that nobody serves are the caller's: any number of them.
            if code != Code::Unimplemented {
                let name = if code == Code::Ok { "OK".to_owned() } else { format!("{code:?}") };
                meters.call(&method, &name, began);
            }
            Ok(answer)
        })
    }
}
