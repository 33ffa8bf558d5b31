//! Files.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#content-repository>

mod answer;
mod asked;
mod config;
mod create;
mod download;
mod errors;
mod preview;
#[cfg(test)]
mod tests;
mod thumbnail;
mod upload;

use std::time::Duration;

use axum::Router;
use myelin_http::{Endpoints as _, RouteOptions, route};
use ruma::api::client::{
    authenticated_media,
    media::{create_content, create_content_async, get_content, get_content_as_filename, get_content_thumbnail},
};

use crate::Services;

/// The largest file over a slow line.
const UPLOAD_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// A file of another server has to be here before the answer begins.
const DOWNLOAD_DEADLINE: Duration = Duration::from_secs(5 * 60);

/// A page, its picture, and what else it names.
const PREVIEW_DEADLINE: Duration = Duration::from_secs(30);

#[expect(deprecated, reason = "clients in use still speak them")]
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    let download = RouteOptions::new().deadline(DOWNLOAD_DEADLINE);
    let upload = RouteOptions::new().raw_body().deadline(UPLOAD_DEADLINE);
    let router = route::<create_content::v3::Request, _, _, _>(router, upload, upload::upload);
    let router = route::<create_content_async::v3::Request, _, _, _>(router, upload, upload::fill);
    let router =
        route::<authenticated_media::get_content::v1::Request, _, _, _>(router, download, download::authenticated);
    let router = route::<authenticated_media::get_content_as_filename::v1::Request, _, _, _>(
        router,
        download,
        download::authenticated_with_name,
    );
    let router = route::<authenticated_media::get_content_thumbnail::v1::Request, _, _, _>(
        router,
        download,
        thumbnail::authenticated,
    );
    let router = route::<get_content::v3::Request, _, _, _>(router, download, download::deprecated);
    let router =
        route::<get_content_as_filename::v3::Request, _, _, _>(router, download, download::deprecated_with_name);
    let router = route::<get_content_thumbnail::v3::Request, _, _, _>(router, download, thumbnail::deprecated);
    let preview = RouteOptions::new().deadline(PREVIEW_DEADLINE);
    let router = router.endpoint_with(preview, preview::show).endpoint_with(preview, preview::show_deprecated);
    router.endpoint(create::create).endpoint(config::show).endpoint(config::show_deprecated)
}
