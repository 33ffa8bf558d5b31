//! From ruma's metadata to the router's paths.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::Request,
    handler::Handler,
    routing::{MethodFilter, on},
};
use ruma::api::{IncomingRequest, Metadata, path_builder::PathBuilder as _};

use crate::{LimitKind, Matrix, RequestContext, Scheme};

/// What one route does otherwise than most.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteOptions {
    pub(crate) body_bytes_max: Option<usize>,
    pub(crate) body_format: BodyFormat,
    pub(crate) rate_limit: Option<LimitKind>,
    deadline: Option<Duration>,
    is_long_poll: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum BodyFormat {
    #[default]
    Json,
    Raw,
}

impl RouteOptions {
    /// A route like most: JSON of at most [`LayerOptions::json_body_bytes_max`](crate::LayerOptions), the usual deadline,
    /// and [`LimitKind::Other`] where the specification says that the endpoint is rate-limited.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits on purpose: no deadline, never slow.
    #[must_use]
    pub fn long_poll(self) -> Self {
        Self { is_long_poll: true, ..self }
    }

    /// Takes a body of at most this many bytes.
    #[must_use]
    pub fn body_bytes_max(self, bytes_max: usize) -> Self {
        Self { body_bytes_max: Some(bytes_max), ..self }
    }

    /// The bound that [`body_bytes_max`](Self::body_bytes_max) has set.
    pub fn body_limit(&self) -> Option<usize> {
        self.body_bytes_max
    }

    /// Takes a body that is not JSON.
    #[must_use]
    pub fn raw_body(self) -> Self {
        Self { body_format: BodyFormat::Raw, ..self }
    }

    /// Has to answer in this time.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// Counts as this kind.
    #[must_use]
    pub fn rate_limit(self, kind: LimitKind) -> Self {
        Self { rate_limit: Some(kind), ..self }
    }
}

/// An extractor of whole requests, such as [`Matrix`], which tells by its type which endpoint it is for.
pub trait NamesEndpoint {
    /// ruma's type of the request.
    type Request: IncomingRequest;
}

impl<R> NamesEndpoint for Matrix<R>
where
    R: IncomingRequest,
    R::Authentication: Scheme,
{
    type Request = R;
}

/// The arguments of a handler whose last one [names its endpoint](NamesEndpoint).
pub trait EndpointArguments {
    /// ruma's type of the request.
    type Request: IncomingRequest;
}

macro_rules! endpoint_arguments {
    ($($argument:ident),*) => {
        impl<M, $($argument,)* E: NamesEndpoint> EndpointArguments for (M, $($argument,)* E) {
            type Request = E::Request;
        }
    };
}

endpoint_arguments!();
endpoint_arguments!(A);
endpoint_arguments!(A, B);
endpoint_arguments!(A, B, C);

/// Registers endpoints on a router.
pub trait Endpoints<S>: Sized {
    /// Registers a handler on all [`paths`] of the request that it takes.
    ///
    /// # Panics
    ///
    /// When another handler has one of them, with the same method.
    fn endpoint<H, T>(self, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: EndpointArguments + 'static,
    {
        self.endpoint_with(RouteOptions::new(), handler)
    }

    /// [`endpoint`](Self::endpoint) with options.
    fn endpoint_with<H, T>(self, options: RouteOptions, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: EndpointArguments + 'static;
}

impl<S: Clone + Send + Sync + 'static> Endpoints<S> for Router<S> {
    fn endpoint_with<H, T>(self, options: RouteOptions, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: EndpointArguments + 'static,
    {
        route::<T::Request, H, T, S>(self, options, handler)
    }
}

/// Registers any handler on all [`paths`] of `R`: for those that read the request by other means than [`Matrix`].
///
/// # Panics
///
/// When another handler has one of them, with the same method.
pub fn route<R, H, T, S>(mut router: Router<S>, options: RouteOptions, handler: H) -> Router<S>
where
    R: Metadata,
    H: Handler<T, S>,
    T: 'static,
    S: Clone + Send + Sync + 'static,
{
    let method = MethodFilter::try_from(R::METHOD).expect("the specification uses standard methods");
    let handler = Configured { handler, options };
    for path in paths::<R>() {
        router = router.route(&path, on(method, handler.clone()));
    }
    router
}

/// All paths that an endpoint is answered on, in the router's syntax.
///
/// These are all that it ever had, unstable ones too. Since clients in use still ask for `r0` and `v1`, both are
/// answered like `v3` for clients and media. An empty state key may be left out with or without its slash, and a path
/// that ends with a slash is answered without it.
pub fn paths<R: Metadata>() -> BTreeSet<String> {
    R::PATH_BUILDER
        .all_paths()
        .flat_map(versions)
        .flat_map(|path| {
            let stem = path.strip_suffix("/{state_key}").map(str::to_owned);
            let slashless = path.strip_suffix('/').map(str::to_owned);
            let with_slash = stem.as_ref().map(|stem| format!("{stem}/"));
            [Some(path), stem, with_slash, slashless]
        })
        .flatten()
        .collect()
}

/// A path, and those of the versions that are answered like it.
fn versions(path: &'static str) -> Vec<String> {
    for prefix in ["/_matrix/client/", "/_matrix/media/"] {
        let Some((version, rest)) = path.strip_prefix(prefix).and_then(|path| path.split_once('/')) else { continue };
        if matches!(version, "r0" | "v3") {
            return ["r0", "v1", "v3"].map(|version| format!("{prefix}{version}/{rest}")).to_vec();
        }
    }
    vec![path.to_owned()]
}

/// A handler that tells the extractor and the layers around it how its route differs.
#[derive(Clone)]
struct Configured<H> {
    handler: H,
    options: RouteOptions,
}

impl<H, T, S> Handler<T, S> for Configured<H>
where
    H: Handler<T, S>,
{
    type Future = H::Future;

    fn call(self, mut request: Request, state: S) -> Self::Future {
        if let Some(context) = request.extensions().get::<Arc<RequestContext>>() {
            if self.options.is_long_poll {
                context.mark_long_poll();
            }
            if let Some(deadline) = self.options.deadline {
                context.set_deadline(deadline);
            }
        }
        request.extensions_mut().insert(self.options);
        self.handler.call(request, state)
    }
}
