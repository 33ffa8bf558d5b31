//! `/_matrix/client/v3/pushrules/`, with all that is below it
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#push-rules-api)

use axum::extract::State;
use myelin_http::{Matrix, Reply, Session};
use myelin_sync::PushRuleChange;
use ruma::{
    api::client::push::{
        PushRule, delete_pushrule, get_pushrule, get_pushrule_actions, get_pushrule_enabled, get_pushrules_all,
        get_pushrules_global_scope, set_pushrule, set_pushrule_actions, set_pushrule_enabled,
    },
    push::{RuleKind, Ruleset},
};

use crate::{Services, errors::Result};

pub(super) async fn all(
    State(services): State<Services>,
    request: Matrix<get_pushrules_all::v3::Request>,
) -> Result<Reply<get_pushrules_all::v3::Response>> {
    Ok(Reply(get_pushrules_all::v3::Response::new(rules(&services, request.session()).await?)))
}

pub(super) async fn of_scope(
    State(services): State<Services>,
    request: Matrix<get_pushrules_global_scope::v3::Request>,
) -> Result<Reply<get_pushrules_global_scope::v3::Response>> {
    Ok(Reply(get_pushrules_global_scope::v3::Response::new(rules(&services, request.session()).await?)))
}

pub(super) async fn one(
    State(services): State<Services>,
    request: Matrix<get_pushrule::v3::Request>,
) -> Result<Reply<get_pushrule::v3::Response>> {
    let rule = rule(&services, request.session(), &request.body.kind, &request.body.rule_id).await?;
    Ok(Reply(get_pushrule::v3::Response::new(rule)))
}

pub(super) async fn is_enabled(
    State(services): State<Services>,
    request: Matrix<get_pushrule_enabled::v3::Request>,
) -> Result<Reply<get_pushrule_enabled::v3::Response>> {
    let rule = rule(&services, request.session(), &request.body.kind, &request.body.rule_id).await?;
    Ok(Reply(get_pushrule_enabled::v3::Response::new(rule.enabled)))
}

pub(super) async fn actions(
    State(services): State<Services>,
    request: Matrix<get_pushrule_actions::v3::Request>,
) -> Result<Reply<get_pushrule_actions::v3::Response>> {
    let rule = rule(&services, request.session(), &request.body.kind, &request.body.rule_id).await?;
    Ok(Reply(get_pushrule_actions::v3::Response::new(rule.actions)))
}

pub(super) async fn set(
    State(services): State<Services>,
    request: Matrix<set_pushrule::v3::Request>,
) -> Result<Reply<set_pushrule::v3::Response>> {
    let set_pushrule::v3::Request { rule, before, after, .. } = request.body.clone();
    let (kind, rule_id) = (rule.kind(), rule.rule_id().to_owned());
    change(&services, request.session(), kind, &rule_id, PushRuleChange::Set { rule, before, after }).await?;
    Ok(Reply(set_pushrule::v3::Response::new()))
}

pub(super) async fn remove(
    State(services): State<Services>,
    request: Matrix<delete_pushrule::v3::Request>,
) -> Result<Reply<delete_pushrule::v3::Response>> {
    let delete_pushrule::v3::Request { kind, rule_id, .. } = &request.body;
    change(&services, request.session(), kind.clone(), rule_id, PushRuleChange::Remove).await?;
    Ok(Reply(delete_pushrule::v3::Response::new()))
}

pub(super) async fn enable(
    State(services): State<Services>,
    request: Matrix<set_pushrule_enabled::v3::Request>,
) -> Result<Reply<set_pushrule_enabled::v3::Response>> {
    let set_pushrule_enabled::v3::Request { kind, rule_id, enabled, .. } = &request.body;
    change(&services, request.session(), kind.clone(), rule_id, PushRuleChange::Enable(*enabled)).await?;
    Ok(Reply(set_pushrule_enabled::v3::Response::new()))
}

pub(super) async fn set_actions(
    State(services): State<Services>,
    request: Matrix<set_pushrule_actions::v3::Request>,
) -> Result<Reply<set_pushrule_actions::v3::Response>> {
    let set_pushrule_actions::v3::Request { kind, rule_id, actions, .. } = &request.body;
    change(&services, request.session(), kind.clone(), rule_id, PushRuleChange::Act(actions.clone())).await?;
    Ok(Reply(set_pushrule_actions::v3::Response::new()))
}

async fn rules(services: &Services, session: &Session) -> Result<Ruleset> {
    Ok(services.sync.push_rules(session.user_nid, &session.user_id).await?)
}

async fn rule(services: &Services, session: &Session, kind: &RuleKind, rule_id: &str) -> Result<PushRule> {
    Ok(services.sync.push_rule(session.user_nid, &session.user_id, kind.clone(), rule_id).await?.into())
}

async fn change(
    services: &Services,
    session: &Session,
    kind: RuleKind,
    rule_id: &str,
    change: PushRuleChange,
) -> Result<()> {
    // Guests are told of what they see alone.
    session.require_full_account()?;
    Ok(services.sync.change_push_rule(session.user_nid, &session.user_id, kind, rule_id, change).await?)
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};
    use serde_json::{Value, json};

    use crate::testing::{Answer, Server, on_both};

    const RULES: &str = "/_matrix/client/v3/pushrules/global";

    async fn put(server: &Server, token: &str, path: &str, body: Value) -> Answer {
        server.request(Method::PUT, &format!("{RULES}/{path}"), Some(token), &body).await
    }

    async fn ids(server: &Server, token: &str, kind: &str) -> Vec<String> {
        let all = server.get("/_matrix/client/v3/pushrules/", Some(token)).await.json(StatusCode::OK);
        let rules = all["global"][kind].as_array().unwrap();
        rules.iter().map(|rule| rule["rule_id"].as_str().unwrap().to_owned()).collect()
    }

    /// A user makes rules, puts them in order, turns them on and off, and takes them away; /sync tells of each change.
    #[tokio::test]
    async fn people_make_their_own_rules() {
        on_both(async |server: &Server| {
            let alice = server.user("alice").await;
            let scope = server.get(&format!("{RULES}/"), Some(&alice)).await.json(StatusCode::OK);
            assert_eq!(scope["override"][0]["rule_id"], ".m.rule.master");
            let since = server.get("/_matrix/client/v3/sync", Some(&alice)).await.json(StatusCode::OK);
            let since = since["next_batch"].as_str().unwrap();

            let cake = json!({ "pattern": "cake", "actions": ["notify", { "set_tweak": "highlight" }] });
            put(server, &alice, "content/cake", cake).await.json(StatusCode::OK);
            let tea = json!({ "pattern": "tea", "actions": [] });
            put(server, &alice, "content/tea?after=cake", tea).await.json(StatusCode::OK);
            assert_eq!(ids(server, &alice, "content").await[..2], ["cake", "tea"]);
            let shown = server.get(&format!("{RULES}/content/cake"), Some(&alice)).await.json(StatusCode::OK);
            assert_eq!(
                (&shown["pattern"], &shown["enabled"], &shown["default"]),
                (&json!("cake"), &json!(true), &json!(false))
            );
            put(server, &alice, "content/tea?before=cake", json!({ "pattern": "tea", "actions": [] }))
                .await
                .json(StatusCode::OK);
            assert_eq!(ids(server, &alice, "content").await[..2], ["tea", "cake"]);

            put(server, &alice, "content/cake/enabled", json!({ "enabled": false })).await.json(StatusCode::OK);
            let enabled = server.get(&format!("{RULES}/content/cake/enabled"), Some(&alice)).await;
            assert_eq!(enabled.json(StatusCode::OK), json!({ "enabled": false }));
            // What the server has may be changed in what it does, and stays so when the user's rules change.
            put(server, &alice, "underride/.m.rule.message/actions", json!({ "actions": [] }))
                .await
                .json(StatusCode::OK);
            put(server, &alice, "room/!a:example.org", json!({ "actions": [] })).await.json(StatusCode::OK);
            let actions = server.get(&format!("{RULES}/underride/.m.rule.message/actions"), Some(&alice)).await;
            assert_eq!(actions.json(StatusCode::OK), json!({ "actions": [] }));

            let path = format!("/_matrix/client/v3/sync?since={since}");
            let news = server.get(&path, Some(&alice)).await.json(StatusCode::OK);
            let told = &news["account_data"]["events"][0];
            assert_eq!(
                (&told["type"], &told["content"]["global"]["content"][1]["enabled"]),
                (&json!("m.push_rules"), &json!(false))
            );
            let gone = server.request(Method::DELETE, &format!("{RULES}/content/cake"), Some(&alice), &json!({})).await;
            gone.json(StatusCode::OK);
            assert_eq!(ids(server, &alice, "content").await[0], "tea");
            let gone = server.get(&format!("{RULES}/content/cake"), Some(&alice)).await;
            assert_eq!(gone.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
        })
        .await;
    }

    /// What is no rule is refused, and changes nothing.
    #[tokio::test]
    async fn refuses_what_is_no_rule() {
        on_both(async |server: &Server| {
            let alice = server.user("alice").await;
            let before = server.get("/_matrix/client/v3/pushrules/", Some(&alice)).await.json(StatusCode::OK);
            let quiet = json!({ "actions": [] });
            let patterned = json!({ "pattern": "x", "actions": [] });
            let huge = json!({ "pattern": "x".repeat(300_000), "actions": [] });
            let cases = [
                ("content/.mine", &patterned, 400, "M_INVALID_PARAM"),
                ("content/a%2Fb", &patterned, 400, "M_INVALID_PARAM"),
                ("content/mine?before=.m.rule.contains_user_name", &patterned, 400, "M_INVALID_PARAM"),
                ("content/mine?before=other", &patterned, 400, "M_UNKNOWN"),
                ("content/mine", &quiet, 400, "M_MISSING_PARAM"),
                ("content/mine", &huge, 413, "M_TOO_LARGE"),
                ("room/not-a-room", &quiet, 400, "M_INVALID_PARAM"),
                ("content/mine/enabled", &json!({ "enabled": true }), 404, "M_NOT_FOUND"),
                ("content/mine/enabled", &json!({ "enabled": "yes" }), 400, "M_BAD_JSON"),
                ("content/mine/actions", &quiet, 404, "M_NOT_FOUND"),
            ];
            for (path, body, status, errcode) in cases {
                let refused = put(server, &alice, path, body.clone()).await;
                assert_eq!(refused.errcode(StatusCode::from_u16(status).unwrap()), errcode, "{path}");
            }
            for (path, status) in [("override/.m.rule.master", 400), ("content/mine", 404), ("other/mine", 404)] {
                let path = format!("{RULES}/{path}");
                let refused = server.request(Method::DELETE, &path, Some(&alice), &json!({})).await;
                assert_eq!(refused.status().as_u16(), status, "{path}");
            }
            let after = server.get("/_matrix/client/v3/pushrules/", Some(&alice)).await.json(StatusCode::OK);
            assert_eq!(after, before);
            let nobody = server.get("/_matrix/client/v3/pushrules/", None).await;
            assert_eq!(nobody.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
        })
        .await;
    }
}
