//! Who answers a request, by its host and path.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use http::{
    Method, Request, Response, StatusCode,
    header::{ALLOW, HeaderValue},
};
use http_body_util::{BodyExt as _, Full};

use crate::{
    RequestBody, Serve, manners,
    static_files::StaticFiles,
    upstream::{AnswerBody, Upstreams, refusal},
    well_known::{self, WellKnown},
};

/// Who answers.
#[derive(Clone, Debug)]
pub enum Target {
    /// Servers behind.
    Upstreams(Arc<Upstreams>),
    /// Files.
    Files(Arc<StaticFiles>),
    /// Documents that follow from the configuration, by their path.
    Documents(Arc<HashMap<&'static str, String>>),
}

impl Target {
    /// The documents at `/.well-known/matrix`.
    pub fn well_known(well_known: &WellKnown) -> Self {
        Self::Documents(Arc::new(well_known.documents().into_iter().collect()))
    }
}

/// Which requests a target answers.
#[derive(Clone, Debug)]
pub struct Route {
    /// The host, in small letters; none for all that have no route of their own for the path.
    pub host: Option<String>,
    /// What the path begins with: whole segments.
    pub path: String,
    /// Who answers.
    pub target: Target,
}

/// Routes as the service of a listener.
#[derive(Clone, Debug)]
pub struct Router {
    routes: Arc<[Route]>,
    encrypted: bool,
}

impl Router {
    /// Routes for a listener that is `encrypted`, or not. The order does not count: a host counts more than none, then
    /// the longest path.
    pub fn new(mut routes: Vec<Route>, encrypted: bool) -> Self {
        routes.sort_by_key(|route| (route.host.is_none(), std::cmp::Reverse(route.path.len())));
        Self { routes: routes.into(), encrypted }
    }

    /// Who answers a path of a host.
    fn find(&self, host: Option<&str>, path: &str) -> Option<&Target> {
        let fits =
            |route: &&Route| route.host.as_deref().is_none_or(|own| Some(own) == host) && is_below(path, &route.path);
        self.routes.iter().find(fits).map(|route| &route.target)
    }
}

/// Whether a path is `prefix` or something below it.
fn is_below(path: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Serve for Router {
    type Body = AnswerBody;

    const UPGRADES: bool = true;

    async fn serve(self, request: Request<RequestBody>, client: SocketAddr) -> Response<AnswerBody> {
        let host = manners::host(&request);
        match self.find(host.as_deref(), request.uri().path()) {
            Some(Target::Upstreams(upstreams)) => upstreams.forward(request, client, self.encrypted).await,
            Some(Target::Files(files)) => files.answer(&request).await,
            Some(Target::Documents(documents)) => document(documents, &request),
            None => refusal(StatusCode::NOT_FOUND, "There is nothing here."),
        }
    }
}

fn document<B>(documents: &HashMap<&'static str, String>, request: &Request<B>) -> Response<AnswerBody> {
    let Some(document) = documents.get(request.uri().path()) else {
        return refusal(StatusCode::NOT_FOUND, "There is nothing here.");
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "This can be read only.");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    well_known::response::<String>(document).map(|text| Full::from(text).map_err(|never| match never {}).boxed_unsync())
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use super::{Route, Router, Target, is_below};

    /// The name of the documents that answer.
    fn find(router: &Router, host: &str, path: &str) -> Option<&'static str> {
        match router.find(Some(host), path)? {
            Target::Documents(documents) => documents.keys().next().copied(),
            _ => None,
        }
    }

    /// A host's own routes come first, then the longest path.
    #[test]
    fn the_closest_route_answers() {
        let route = |host: Option<&str>, path: &str, name: &'static str| Route {
            host: host.map(str::to_owned),
            path: path.to_owned(),
            target: Target::Documents(Arc::new(HashMap::from([(name, String::new())]))),
        };
        let routes = vec![
            route(None, "/", "all"),
            route(Some("a.example"), "/", "a"),
            route(Some("a.example"), "/_matrix", "a matrix"),
            route(None, "/_matrix/media", "media"),
        ];
        let router = Router::new(routes, true);
        assert_eq!(find(&router, "a.example", "/_matrix/media/x"), Some("a matrix"));
        assert_eq!(find(&router, "a.example", "/_matrixes"), Some("a"));
        assert_eq!(find(&router, "b.example", "/_matrix/media/x"), Some("media"));
        assert_eq!(find(&router, "b.example", "/"), Some("all"));
        let only = Router::new(vec![route(Some("a.example"), "/x", "a")], true);
        assert_eq!(find(&only, "b.example", "/x"), None);
        assert_eq!(find(&only, "a.example", "/"), None);
    }

    /// Whole segments count.
    #[test]
    fn paths_are_compared_by_segments() {
        assert!(is_below("/a", "/a") && is_below("/a/b", "/a") && is_below("/a/b", "/a/") && is_below("/x", "/"));
        assert!(!is_below("/ab", "/a") && !is_below("/", "/a"));
    }
}
