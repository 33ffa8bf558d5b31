//! The user's push rules, which are account data that only the server writes.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#push-rules>

use std::sync::Arc;

use parking_lot::Mutex;
use ruma::{
    UserId,
    events::push_rules::PushRulesEventContent,
    push::{
        Action, AnyPushRule, AnyPushRuleRef, InsertPushRuleError, NewPushRule, RemovePushRuleError, RuleKind, Ruleset,
    },
};

use crate::{Error, Result, Sync};

/// The most bytes that all rules of a user may have together.
pub const PUSH_RULES_BYTES_MAX: usize = 256 * 1024;

/// The type of the account data that they are.
const PUSH_RULES: &str = "m.push_rules";
const NO_SUCH_RULE: Error = Error::NotFound("there is no such push rule");

/// One change of the rules.
#[derive(Clone, Debug)]
pub enum PushRuleChange {
    /// Adds or replaces a rule of the user's own, before or after another of these.
    Set {
        /// The rule.
        rule: NewPushRule,
        /// The next less important one.
        before: Option<String>,
        /// The next more important one.
        after: Option<String>,
    },
    /// Takes one of these away.
    Remove,
    /// Turns any rule on or off.
    Enable(bool),
    /// Lets any rule do other things.
    Act(Vec<Action>),
}

impl Sync {
    /// All push rules of a user, the server's own among them.
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub async fn push_rules(&self, user_nid: i64, user_id: &UserId) -> Result<Ruleset> {
        let data = self.store.account_data(user_nid, 0, PUSH_RULES).await?;
        Ok(rules_of(data.as_ref().map(|data| &*data.content), user_id))
    }

    /// One push rule of a user.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Store`].
    pub async fn push_rule(
        &self,
        user_nid: i64,
        user_id: &UserId,
        kind: RuleKind,
        rule_id: &str,
    ) -> Result<AnyPushRule> {
        let rules = self.push_rules(user_nid, user_id).await?;
        rules.get(kind, rule_id).map(AnyPushRuleRef::to_owned).ok_or(NO_SUCH_RULE)
    }

    /// Changes the rule of this kind and id.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if there is no such rule, [`Error::InvalidParam`] for an id that no rule may have and for a
    /// rule of the server's own that is to be replaced or removed, [`Error::UnknownRule`] if there is no rule to put it
    /// before or after, [`Error::TooLarge`] over [`PUSH_RULES_BYTES_MAX`], [`Error::Store`].
    pub async fn change_push_rule(
        &self,
        user_nid: i64,
        user_id: &UserId,
        kind: RuleKind,
        rule_id: &str,
        change: PushRuleChange,
    ) -> Result<()> {
        let refusal: Arc<Mutex<Option<Error>>> = Arc::default();
        let (refused, user_id, rule_id) = (refusal.clone(), user_id.to_owned(), rule_id.to_owned());
        let apply = move |content: Option<&str>| {
            let mut rules = rules_of(content, &user_id);
            let written = apply(&mut rules, kind, &rule_id, change).and_then(|()| write(rules));
            match written {
                Ok(text) => Some(text).filter(|text| content != Some(text.as_str())),
                Err(error) => {
                    *refused.lock() = Some(error);
                    None
                }
            }
        };
        self.store.change_account_data(user_nid, 0, PUSH_RULES, apply).await?;
        let refusal = refusal.lock().take();
        refusal.map_or(Ok(()), Err)
    }
}

/// The rules in the content of `m.push_rules`, with what the server's own are today.
pub(crate) fn rules_of(content: Option<&str>, user_id: &UserId) -> Ruleset {
    let own = Ruleset::server_default(user_id);
    match content.and_then(|content| serde_json::from_str::<PushRulesEventContent>(content).ok()) {
        Some(PushRulesEventContent { global: mut rules, .. }) => {
            rules.update_with_server_default(own);
            rules
        }
        None => own,
    }
}

fn apply(rules: &mut Ruleset, kind: RuleKind, rule_id: &str, change: PushRuleChange) -> Result<()> {
    match change {
        PushRuleChange::Set { rule, before, after } => {
            rules.insert(rule, after.as_deref(), before.as_deref()).map_err(|error| match error {
                InsertPushRuleError::UnknownRuleId => Error::UnknownRule(error.to_string()),
                error => Error::InvalidParam(error.to_string()),
            })
        }
        PushRuleChange::Remove => rules.remove(kind, rule_id).map_err(|error| match error {
            RemovePushRuleError::NotFound => NO_SUCH_RULE,
            error => Error::InvalidParam(error.to_string()),
        }),
        PushRuleChange::Enable(enabled) => rules.set_enabled(kind, rule_id, enabled).map_err(|_| NO_SUCH_RULE),
        PushRuleChange::Act(actions) => rules.set_actions(kind, rule_id, actions).map_err(|_| NO_SUCH_RULE),
    }
}

fn write(rules: Ruleset) -> Result<String> {
    let text = serde_json::to_string(&PushRulesEventContent::new(rules)).map_err(Error::Write)?;
    if text.len() > PUSH_RULES_BYTES_MAX {
        return Err(Error::TooLarge(format!("push rules have at most {PUSH_RULES_BYTES_MAX} bytes together")));
    }
    Ok(text)
}
