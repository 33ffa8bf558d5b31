//! What a client asks for: read once, checked at the edge, in the form of today's clients and in the one that was merged.

use std::{collections::BTreeMap, time::Duration};

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId, presence::PresenceState};
use serde::Deserialize;

use super::{
    connection::Point,
    required::{Body as RequiredBody, Required},
};
use crate::{Error, Result, filter::TIMELINE_LIMIT_MAX, to_device::MESSAGES_MAX};

/// "Max lists: 100. If a request contains more than this the server will respond with a 400 error response".
const LISTS_MAX: usize = 100;
/// "Max subscriptions: 100", which clients of the unstable form were not told.
const SUBSCRIPTIONS_MAX: usize = 100;
const UNSTABLE_SUBSCRIPTIONS_MAX: usize = 1000;
/// Ranges of a list.
const RANGES_MAX: usize = 32;
/// Entries of any list within a filter or an extension.
const ENTRIES_MAX: usize = 1000;
/// Different wishes for state in a request.
const REQUIRED_MAX: usize = 32;
/// Bytes of all of them together.
const REQUIRED_BYTES_MAX: usize = 32 * 1024;
/// Bytes of a name that the client gives.
const NAME_BYTES_MAX: usize = 255;
/// The greatest number that all JSON readers agree on.
const INTEGER_MAX: u64 = (1 << 53) - 1;

/// In which of its two forms sliding sync is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlidingForm {
    /// `/unstable/org.matrix.simplified_msc3575/sync`, as clients speak it today.
    Unstable,
    /// `/v4/sync`, as the proposal was merged.
    Stable,
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct SlidingCaller {
    /// The user, by number.
    pub user_nid: i64,
    /// The user.
    pub user_id: OwnedUserId,
    /// The device, by number.
    pub device_nid: i64,
}

/// What the unstable form has in the query; the other has it in the body.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct SlidingQuery {
    pos: Option<String>,
    timeout: Option<u64>,
    set_presence: Option<String>,
}

/// A request of sliding sync.
#[derive(Clone, Debug)]
pub struct SlidingRequest {
    pub(super) caller: SlidingCaller,
    pub(super) form: SlidingForm,
    pub(super) conn_id: Box<str>,
    pub(super) pos: Option<Point>,
    pub(super) txn_id: Option<String>,
    pub(super) timeout: Duration,
    pub(super) set_presence: PresenceState,
    pub(super) lists: BTreeMap<Box<str>, List>,
    pub(super) subscriptions: BTreeMap<OwnedRoomId, Config>,
    pub(super) extensions: Extensions,
}

/// How a room is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) limit: u8,
    pub(super) required: Required,
}

/// A window on the user's rooms.
#[derive(Clone, Debug)]
pub(super) struct List {
    /// `None` for all rooms.
    pub(super) ranges: Option<Vec<(u64, u64)>>,
    pub(super) filters: Filters,
    pub(super) config: Config,
}

/// Which rooms are in a list. "All fields are applied with AND operators."
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Filters {
    pub(super) is_dm: Option<bool>,
    pub(super) spaces: Option<Vec<String>>,
    pub(super) is_encrypted: Option<bool>,
    #[serde(alias = "is_invite")]
    pub(super) is_invited: Option<bool>,
    #[serde(default)]
    pub(super) room_types: Option<Vec<Option<Box<str>>>>,
    #[serde(default)]
    pub(super) not_room_types: Option<Vec<Option<Box<str>>>>,
    pub(super) tags: Option<Vec<String>>,
    pub(super) not_tags: Option<Vec<String>>,
}

impl Filters {
    /// Whether it has to be known what kind of room each one is.
    pub(super) fn looks_at_kinds(&self) -> bool {
        self.is_encrypted.is_some() || self.room_types.is_some() || self.not_room_types.is_some()
    }

    fn check(&self) -> Result<()> {
        let texts = [&self.spaces, &self.tags, &self.not_tags].into_iter().flatten().map(Vec::len);
        let types = [&self.room_types, &self.not_room_types].into_iter().flatten().map(Vec::len);
        match texts.chain(types).any(|length| length > ENTRIES_MAX) {
            true => Err(invalid(format!("a filter names at most {ENTRIES_MAX} things of a kind"))),
            false => Ok(()),
        }
    }
}

/// What is asked for besides rooms.
#[derive(Clone, Debug, Default)]
pub(super) struct Extensions {
    pub(super) to_device: Option<ToDevice>,
    pub(super) e2ee: bool,
    pub(super) account_data: Option<Scope>,
    pub(super) receipts: Option<Scope>,
    pub(super) typing: Option<Scope>,
}

/// Messages to the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct ToDevice {
    pub(super) limit: usize,
    /// The client has all messages up to this position.
    pub(super) since: Option<i64>,
}

/// The rooms that an extension is about.
#[derive(Clone, Debug, Default)]
pub(super) struct Scope {
    /// Names of lists; `None` for all.
    lists: Option<Vec<String>>,
    /// Subscribed rooms; `None` for all.
    rooms: Option<Vec<String>>,
}

impl Scope {
    /// Whether a room in some lists, subscribed to or not, is meant.
    pub(super) fn includes<'a>(
        &self,
        room_id: &RoomId,
        is_subscribed: bool,
        mut lists: impl Iterator<Item = &'a str>,
    ) -> bool {
        let has = |names: &Option<Vec<String>>, name: &str| {
            names.as_ref().is_none_or(|names| names.iter().any(|one| one == "*" || one == name))
        };
        (is_subscribed && has(&self.rooms, room_id.as_str())) || lists.any(|list| has(&self.lists, list))
    }
}

#[derive(Deserialize)]
struct Body {
    conn_id: Option<String>,
    pos: Option<String>,
    txn_id: Option<String>,
    timeout: Option<u64>,
    set_presence: Option<String>,
    lists: Option<BTreeMap<Box<str>, ListBody>>,
    room_subscriptions: Option<BTreeMap<String, ConfigBody>>,
    extensions: Option<ExtensionsBody>,
}

#[derive(Deserialize)]
struct ListBody {
    ranges: Option<Vec<(u64, u64)>>,
    range: Option<(u64, u64)>,
    filters: Option<Filters>,
    required_state: Option<RequiredBody>,
    timeline_limit: Option<u64>,
}

#[derive(Deserialize)]
struct ConfigBody {
    required_state: Option<RequiredBody>,
    timeline_limit: Option<u64>,
}

#[derive(Default, Deserialize)]
struct ExtensionsBody {
    to_device: Option<ToDeviceBody>,
    e2ee: Option<ScopeBody>,
    account_data: Option<ScopeBody>,
    receipts: Option<ScopeBody>,
    typing: Option<ScopeBody>,
}

#[derive(Deserialize)]
struct ToDeviceBody {
    enabled: Option<bool>,
    limit: Option<u64>,
    since: Option<String>,
}

#[derive(Deserialize)]
struct ScopeBody {
    enabled: Option<bool>,
    lists: Option<Vec<String>>,
    rooms: Option<Vec<String>>,
}

impl ScopeBody {
    fn read(self) -> Result<Option<Scope>> {
        let Self { enabled, lists, rooms } = self;
        if [&lists, &rooms].into_iter().flatten().any(|names| names.len() > ENTRIES_MAX) {
            return Err(invalid(format!("an extension names at most {ENTRIES_MAX} lists or rooms")));
        }
        Ok(enabled.unwrap_or(false).then_some(Scope { lists, rooms }))
    }
}

impl SlidingRequest {
    /// Reads a request's query and body.
    ///
    /// # Errors
    ///
    /// [`Error::BadJson`] when the body has not the right shape, [`Error::InvalidParam`] when something in it is not
    /// allowed or too much, [`Error::UnknownPos`] when the position is none of ours.
    pub fn parse(caller: SlidingCaller, form: SlidingForm, query: SlidingQuery, body: &[u8]) -> Result<Self> {
        let body: Body = serde_json::from_slice(body).map_err(|error| Error::BadJson(error.to_string()))?;
        let user_id = caller.user_id.clone();
        let conn_id = body.conn_id.unwrap_or_default();
        check_name("conn_id", &conn_id, form)?;
        if body.txn_id.as_ref().is_some_and(|txn_id| txn_id.len() > NAME_BYTES_MAX) {
            return Err(invalid(format!("txn_id has at most {NAME_BYTES_MAX} bytes")));
        }
        let pos = query.pos.or(body.pos).filter(|pos| !pos.is_empty());
        let set_presence = match query.set_presence.or(body.set_presence).as_deref() {
            None | Some("online") => PresenceState::Online,
            Some("offline") => PresenceState::Offline,
            Some("unavailable") => PresenceState::Unavailable,
            Some(_) => return Err(invalid("set_presence is none of online, offline and unavailable")),
        };
        let request = Self {
            pos: pos.map(|pos| pos.parse().map_err(|_| Error::UnknownPos)).transpose()?,
            form,
            conn_id: conn_id.into(),
            txn_id: body.txn_id,
            timeout: Duration::from_millis(query.timeout.or(body.timeout).unwrap_or(0)),
            set_presence,
            lists: lists_of(body.lists.unwrap_or_default(), &user_id, form)?,
            subscriptions: subscriptions_of(body.room_subscriptions.unwrap_or_default(), &user_id, form)?,
            extensions: extensions_of(body.extensions.unwrap_or_default())?,
            caller,
        };
        request.check_required()?;
        Ok(request)
    }

    /// All wishes for state.
    pub(super) fn required(&self) -> impl Iterator<Item = &Required> {
        let lists = self.lists.values().map(|list| &list.config);
        lists.chain(self.subscriptions.values()).map(|config| &config.required)
    }

    /// They are kept with the connection, so they must not be many.
    fn check_required(&self) -> Result<()> {
        let mut different: Vec<&Required> = self.required().collect();
        different.sort_unstable();
        different.dedup();
        let bytes: usize = different.iter().map(|required| required.weight()).sum();
        if different.len() > REQUIRED_MAX || bytes > REQUIRED_BYTES_MAX {
            return Err(invalid(format!(
                "required_state may be given in at most {REQUIRED_MAX} ways of {REQUIRED_BYTES_MAX} bytes together"
            )));
        }
        Ok(())
    }
}

fn lists_of(
    lists: BTreeMap<Box<str>, ListBody>,
    user_id: &UserId,
    form: SlidingForm,
) -> Result<BTreeMap<Box<str>, List>> {
    if lists.len() > LISTS_MAX {
        return Err(invalid(format!("there may be at most {LISTS_MAX} lists")));
    }
    let read = |(name, list): (Box<str>, ListBody)| {
        let ListBody { ranges, range, filters, required_state, timeline_limit } = list;
        check_name("the name of a list", &name, form)?;
        let ranges = ranges.or(range.map(|range| vec![range]));
        let is_odd = |(start, end): &(u64, u64)| start > end || *end > INTEGER_MAX;
        if ranges.iter().flatten().any(is_odd) {
            return Err(invalid("a range goes from an index to one that is not before it"));
        }
        if ranges.as_ref().is_some_and(|ranges| ranges.len() > RANGES_MAX) {
            return Err(invalid(format!("a list has at most {RANGES_MAX} ranges")));
        }
        let filters = filters.unwrap_or_default();
        filters.check()?;
        let config = config_of(ConfigBody { required_state, timeline_limit }, user_id)?;
        Ok((name, List { ranges, filters, config }))
    };
    lists.into_iter().map(read).collect()
}

fn subscriptions_of(
    subscriptions: BTreeMap<String, ConfigBody>,
    user_id: &UserId,
    form: SlidingForm,
) -> Result<BTreeMap<OwnedRoomId, Config>> {
    let count_max = match form {
        SlidingForm::Unstable => UNSTABLE_SUBSCRIPTIONS_MAX,
        SlidingForm::Stable => SUBSCRIPTIONS_MAX,
    };
    if subscriptions.len() > count_max {
        return Err(invalid(format!("there may be at most {count_max} room subscriptions")));
    }
    let read = |(room_id, config)| {
        let room_id = RoomId::parse(room_id).map_err(|_| invalid("a room subscription is for a room's identifier"))?;
        Ok((room_id, config_of(config, user_id)?))
    };
    subscriptions.into_iter().map(read).collect()
}

fn config_of(body: ConfigBody, user_id: &UserId) -> Result<Config> {
    let limit = body.timeline_limit.unwrap_or(0).min(TIMELINE_LIMIT_MAX as u64);
    let required = Required::read(body.required_state, user_id)?;
    Ok(Config { limit: u8::try_from(limit).unwrap_or(u8::MAX), required })
}

fn extensions_of(body: ExtensionsBody) -> Result<Extensions> {
    let scope = |body: Option<ScopeBody>| body.map_or(Ok(None), ScopeBody::read);
    let to_device = match body.to_device.filter(|to_device| to_device.enabled.unwrap_or(false)) {
        None => None,
        Some(ToDeviceBody { limit, since, .. }) => {
            let limit = limit.unwrap_or(MESSAGES_MAX as u64).clamp(1, MESSAGES_MAX as u64) as usize;
            let number = |since: String| since.parse::<i64>().ok().filter(|since| *since >= 0);
            let since = match since.filter(|since| !since.is_empty()) {
                None => None,
                Some(since) => Some(number(since).ok_or_else(|| invalid("since is no token of this server"))?),
            };
            Some(ToDevice { limit, since })
        }
    };
    Ok(Extensions {
        to_device,
        e2ee: scope(body.e2ee)?.is_some(),
        account_data: scope(body.account_data)?,
        receipts: scope(body.receipts)?,
        typing: scope(body.typing)?,
    })
}

/// "The list keys must follow the grammar of opaque identifiers." Today's clients were not told so.
fn check_name(what: &str, name: &str, form: SlidingForm) -> Result<()> {
    let is_opaque = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte));
    let is_fine = form == SlidingForm::Unstable || is_opaque;
    if name.len() > NAME_BYTES_MAX || name.contains('\0') || !is_fine {
        return Err(invalid(format!("{what} has at most {NAME_BYTES_MAX} letters, digits, dots, dashes and the like")));
    }
    Ok(())
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::InvalidParam(reason.into())
}

#[cfg(test)]
mod tests {
    use ruma::owned_user_id;
    use serde_json::{Value, json};

    use super::{SlidingCaller, SlidingForm, SlidingQuery, SlidingRequest};
    use crate::{Error, Result};

    fn read(form: SlidingForm, body: &Value) -> Result<SlidingRequest> {
        let caller = SlidingCaller { user_nid: 1, user_id: owned_user_id!("@me:example.org"), device_nid: 2 };
        SlidingRequest::parse(caller, form, SlidingQuery::default(), body.to_string().as_bytes())
    }

    /// Both forms say the same.
    #[test]
    fn two_forms() {
        let unstable = json!({ "lists": { "all": {
            "ranges": [[0, 19]], "timeline_limit": 3, "filters": { "is_invite": true },
            "required_state": [["m.room.member", "$ME"], ["m.room.member", "$LAZY"], ["m.space.child", "*"]],
        } } });
        let stable = json!({ "lists": { "all": {
            "range": [0, 19], "timeline_limit": 3, "filters": { "is_invited": true },
            "required_state": {
                "include": [{ "type": "m.room.member", "state_key": "@me:example.org" }, { "type": "m.space.child" }],
                "lazy_members": true,
            },
        } } });
        let unstable = read(SlidingForm::Unstable, &unstable).unwrap();
        let stable = read(SlidingForm::Stable, &stable).unwrap();
        assert_eq!(unstable.lists["all"].config, stable.lists["all"].config);
        assert_eq!(unstable.lists["all"].ranges, stable.lists["all"].ranges);
        assert_eq!(stable.lists["all"].filters.is_invited, Some(true));
    }

    /// What is too much, or means nothing, is refused.
    #[test]
    fn refusals() {
        let list = |list: Value| json!({ "lists": { "a": list } });
        let lists: serde_json::Map<String, Value> = (0..101).map(|name| (name.to_string(), json!({}))).collect();
        let subscriptions = |count: usize| {
            let rooms: serde_json::Map<String, Value> = (0..count).map(|nr| (format!("!{nr}:x"), json!({}))).collect();
            json!({ "room_subscriptions": rooms })
        };
        let many: Vec<[String; 2]> = (0..2000).map(|nr| [format!("type.{nr}"), "some key".to_owned()]).collect();
        for body in [
            list(json!({ "ranges": [[5, 2]] })),
            list(json!({ "ranges": [[0, 1_u64 << 60]] })),
            list(json!({ "ranges": vec![[0, 1]; 100] })),
            list(json!({ "filters": { "tags": vec!["a"; 2000] } })),
            list(json!({ "required_state": many })),
            json!({ "lists": lists }),
            json!({ "lists": { "x".repeat(300): {} } }),
            json!({ "conn_id": "x".repeat(300) }),
            json!({ "txn_id": "x".repeat(300) }),
            json!({ "set_presence": "asleep" }),
            json!({ "room_subscriptions": { "no room": {} } }),
            json!({ "extensions": { "to_device": { "enabled": true, "since": "-4" } } }),
            subscriptions(1001),
        ] {
            assert!(matches!(read(SlidingForm::Unstable, &body), Err(Error::InvalidParam(_))), "{body}");
        }
        for body in [subscriptions(101), json!({ "conn_id": "with space" })] {
            assert!(matches!(read(SlidingForm::Stable, &body), Err(Error::InvalidParam(_))), "{body}");
            assert!(read(SlidingForm::Unstable, &body).is_ok());
        }
        for body in [
            list(json!({ "ranges": [[-1, 5]] })),
            list(json!({ "ranges": [[1]] })),
            list(json!({ "timeline_limit": "3" })),
            list(json!({ "required_state": [["m.room.name"]] })),
            json!({ "lists": [] }),
        ] {
            assert!(matches!(read(SlidingForm::Unstable, &body), Err(Error::BadJson(_))), "{body}");
        }
        for pos in ["x", "p1", "s1_2", "p1_2_3_4_5_", "p1_2_3_4_5_6_7"] {
            assert!(matches!(read(SlidingForm::Stable, &json!({ "pos": pos })), Err(Error::UnknownPos)), "{pos}");
        }
    }
}
