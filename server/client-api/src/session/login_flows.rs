//! GET /_matrix/client/v3/login
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3login>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::session::get_login_types::v3::{
    LoginType, PasswordLoginType, Request, Response, TokenLoginType,
};

use crate::{Services, errors::Result};

pub(crate) async fn list(_: State<Services>, _: Matrix<Request>) -> Result<Reply<Response>> {
    let mut token = TokenLoginType::new();
    token.get_login_token = true;
    Ok(Reply(Response::new(vec![LoginType::Password(PasswordLoginType::new()), LoginType::Token(token)])))
}
