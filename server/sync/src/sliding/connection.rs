//! Connections: what a client was told of which room.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    str::FromStr,
    sync::Arc,
};

use myelin_store::{NewSlidingConnection, SlidingPoint, SlidingRoom, SlidingStep};
use quick_cache::{Weighter, sync::Cache};

use super::{SlidingRequest, required::Required};
use crate::{
    Error, Result, Sync,
    metrics::{SLIDING_EXPIRED, SLIDING_LOADS, SLIDING_OPENED, SLIDING_ROOMS},
    now_ms,
    token::InvalidToken,
};

/// Rooms of connections in memory, all together.
const ROOMS_MAX: u64 = 1_000_000;
/// Connections in memory, about.
const CONNECTIONS: usize = 20_000;
/// Connections of a device: those used longest ago end.
const CONNECTIONS_OF_DEVICE_MAX: i64 = 16;
/// Different wishes for state that a connection knows. With more, the client begins anew.
const REQUIRED_MAX: usize = 48;

/// Bits of [`Point::moment`] for the answers at one position.
const SEQ_BITS: u32 = 16;

/// A position that a client is given: `p17_1700_3_2_9876_1`.
///
/// Where in the stream, which of what is not kept, the connection, its last answer with its token, and whether account
/// data was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) pos: i64,
    pub(super) serial: u64,
    pub(super) connection_nid: i64,
    pub(super) at: SlidingPoint,
    /// Whether the account data of the user, up to the position, was told.
    pub(super) knows_data: bool,
}

impl Point {
    /// A number that grows with each answer: with the stream, and where that stands still, with the connection.
    pub(super) fn moment(&self) -> i64 {
        (self.pos << SEQ_BITS) | (self.at.seq & ((1 << SEQ_BITS) - 1))
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pos, serial, connection_nid, at: SlidingPoint { seq, token }, knows_data } = self;
        write!(f, "p{pos}_{serial}_{connection_nid}_{seq}_{token}_{}", u8::from(*knows_data))
    }
}

impl FromStr for Point {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let mut parts = text.strip_prefix('p').ok_or(InvalidToken)?.split('_');
        let mut number = || parts.next().and_then(|part| part.parse::<i64>().ok()).ok_or(InvalidToken);
        let pos = number()?;
        let serial = u64::try_from(number()?).map_err(|_| InvalidToken)?;
        let point = Self {
            pos,
            serial,
            connection_nid: number()?,
            at: SlidingPoint { seq: number()?, token: number()? },
            knows_data: number()? == 1,
        };
        if parts.next().is_some() || point.at.seq < 1 || pos < 0 {
            return Err(InvalidToken);
        }
        Ok(point)
    }
}

/// As what a client was told a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    Joined,
    Invited,
    Knocked,
    /// Left, banned, or never let in.
    Out,
}

/// More events than any client asks for: all there are.
pub(super) const ALL_EVENTS: u8 = u8::MAX;

/// What a client was told of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) stand: Stand,
    /// The wishes for state that the room was last told by.
    pub(super) mask: u64,
    /// So many of the newest events the client has seen.
    pub(super) limit: u8,
    /// Whether receipts, and the user's data of the room, were told up to the client's position.
    pub(super) receipts: bool,
    pub(super) data: bool,
    pub(super) is_dm: bool,
    /// What came after this position was not told.
    pub(super) behind: Option<i64>,
}

/// How [`Sent`] is kept: from the lowest bit on.
const RECEIPTS: i64 = 1 << 2;
const DATA: i64 = 1 << 3;
const DM: i64 = 1 << 4;
const LIMIT_SHIFT: u32 = 5;
const MASK_SHIFT: u32 = 13;

impl Sent {
    fn pack(self) -> i64 {
        let stand = match self.stand {
            Stand::Joined => 0,
            Stand::Invited => 1,
            Stand::Knocked => 2,
            Stand::Out => 3,
        };
        let flag = |is_set: bool, bit: i64| if is_set { bit } else { 0 };
        let mask = i64::try_from(self.mask).unwrap_or(0);
        stand
            | flag(self.receipts, RECEIPTS)
            | flag(self.data, DATA)
            | flag(self.is_dm, DM)
            | (i64::from(self.limit) << LIMIT_SHIFT)
            | (mask << MASK_SHIFT)
    }

    fn unpack(told: i64, behind: Option<i64>) -> Self {
        let stand = match told & 3 {
            0 => Stand::Joined,
            1 => Stand::Invited,
            2 => Stand::Knocked,
            _ => Stand::Out,
        };
        Self {
            stand,
            receipts: told & RECEIPTS != 0,
            data: told & DATA != 0,
            is_dm: told & DM != 0,
            limit: u8::try_from((told >> LIMIT_SHIFT) & 0xff).unwrap_or(0),
            mask: u64::try_from(told >> MASK_SHIFT).unwrap_or(0),
            behind,
        }
    }
}

/// A connection after an answer.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// 0 for one that only begins.
    pub(super) nid: i64,
    device_nid: i64,
    pub(super) at: SlidingPoint,
    pub(super) required: Vec<Required>,
    pub(super) rooms: HashMap<i64, Sent>,
}

impl Connection {
    pub(super) fn new(device_nid: i64) -> Self {
        let at = SlidingPoint { seq: 0, token: 0 };
        Self { nid: 0, device_nid, at, required: Vec::new(), rooms: HashMap::new() }
    }

    /// Takes in the wishes of a request. Those that are known keep their numbers.
    pub(super) fn with_required(&self, request: &SlidingRequest) -> Result<Vec<Required>> {
        let mut known = self.required.clone();
        let wanted: BTreeSet<&Required> = request.required().collect();
        for required in wanted {
            if !known.contains(required) {
                known.push(required.clone());
            }
        }
        if known.len() > REQUIRED_MAX {
            SLIDING_EXPIRED.with_label_values(&["configs"]).inc();
            return Err(Error::UnknownPos);
        }
        Ok(known)
    }
}

struct ByRooms;

impl Weighter<i64, Arc<Connection>> for ByRooms {
    fn weight(&self, _: &i64, connection: &Arc<Connection>) -> u64 {
        connection.rooms.len() as u64 + 8
    }
}

impl Clone for ByRooms {
    fn clone(&self) -> Self {
        Self
    }
}

/// The connections in memory, each after its last answer here.
pub(super) struct Connections(Cache<i64, Arc<Connection>, ByRooms>);

impl Connections {
    pub(super) fn new() -> Self {
        Self(Cache::with_weighter(CONNECTIONS, ROOMS_MAX, ByRooms))
    }

    fn keep(&self, connection: &Arc<Connection>) {
        self.0.insert(connection.nid, connection.clone());
        SLIDING_ROOMS.set(i64::try_from(self.0.weight()).unwrap_or(i64::MAX));
    }

    fn end(&self, ended: &[i64]) {
        for nid in ended {
            self.0.remove(nid);
        }
    }

    #[cfg(test)]
    pub(super) fn forget(&self) {
        self.0.clear();
    }
}

/// A number that nobody can guess.
fn by_chance() -> i64 {
    i64::try_from(RandomState::new().build_hasher().finish() >> 1).unwrap_or(i64::MAX)
}

impl Sync {
    /// The connection that a position belongs to, as it was then.
    ///
    /// "Servers MUST reject a pos that was not issued to the requesting user and device, responding with M_UNKNOWN_POS."
    pub(super) async fn connection(&self, device_nid: i64, point: &Point) -> Result<Arc<Connection>> {
        if let Some(known) = self.sliding.connections.0.get(&point.connection_nid)
            && known.at == point.at
            && known.device_nid == device_nid
        {
            return Ok(known);
        }
        SLIDING_LOADS.inc();
        let found = Box::pin(self.store.sliding_connection(point.connection_nid, device_nid, point.at)).await?;
        let Some(found) = found else {
            SLIDING_EXPIRED.with_label_values(&["unknown"]).inc();
            return Err(Error::UnknownPos);
        };
        let required: Vec<Required> = serde_json::from_str(&found.configs).map_err(|_| Error::UnknownPos)?;
        let rooms = found.rooms.into_iter().map(|room| (room.room_nid, Sent::unpack(room.told, room.behind))).collect();
        let connection = Connection { nid: point.connection_nid, device_nid, at: point.at, required, rooms };
        let connection = Arc::new(connection);
        self.sliding.connections.keep(&connection);
        Ok(connection)
    }

    /// The connection after an answer that told of some rooms.
    pub(super) async fn advance(
        &self,
        connection: &Connection,
        request: &SlidingRequest,
        required: Vec<Required>,
        changes: &HashMap<i64, Sent>,
    ) -> Result<Arc<Connection>> {
        let configs = serde_json::to_string(&required).map_err(Error::Write)?;
        let told: Vec<SlidingRoom> = changes
            .iter()
            .map(|(&room_nid, sent)| SlidingRoom { room_nid, told: sent.pack(), behind: sent.behind })
            .collect();
        let at = SlidingPoint { seq: connection.at.seq + 1, token: by_chance() };
        let device_nid = request.caller.device_nid;
        let now_ms = i64::try_from(now_ms()).unwrap_or(i64::MAX);
        let nid = if connection.nid == 0 {
            let new = NewSlidingConnection {
                device_nid,
                conn_id: &request.conn_id,
                first: at,
                configs: &configs,
                rooms: &told,
                count_max: CONNECTIONS_OF_DEVICE_MAX,
                now_ms,
            };
            SLIDING_OPENED.inc();
            let (nid, ended) = self.store.open_sliding_connection(new).await?.ok_or(Error::UnknownPos)?;
            self.sliding.connections.end(&ended);
            nid
        } else {
            let (from, token) = (connection.at, at.token);
            let step = SlidingStep { device_nid, from, token, configs: &configs, rooms: &told, now_ms };
            if !self.store.advance_sliding_connection(connection.nid, step).await? {
                SLIDING_EXPIRED.with_label_values(&["overtaken"]).inc();
                return Err(Error::UnknownPos);
            }
            connection.nid
        };
        let mut rooms = connection.rooms.clone();
        rooms.extend(changes);
        let next = Arc::new(Connection { nid, device_nid, at, required, rooms });
        self.sliding.connections.keep(&next);
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use myelin_store::SlidingPoint;

    use super::{ALL_EVENTS, Point, Sent, Stand};
    use crate::token::Token;

    /// What is written can be read, and serves as a token of history.
    #[test]
    fn points() {
        let at = SlidingPoint { seq: 3, token: i64::MAX };
        let point = Point { pos: 17, serial: 1_700_000_000_000, connection_nid: 5, at, knows_data: true };
        assert_eq!(point.to_string().parse(), Ok(point));
        assert_eq!(point.to_string().parse(), Ok(Token::timeline(17)));
        for text in ["", "p", "p1_2_3_4_5", "p1_-2_3_4_5_1", "p-1_2_3_4_5_1", "p1_2_3_0_5_1", "p1_2_3_4_5_1_1"] {
            assert!(text.parse::<Point>().is_err(), "{text}");
        }
    }

    /// All that is packed comes out again.
    #[test]
    fn packing() {
        for stand in [Stand::Joined, Stand::Invited, Stand::Knocked, Stand::Out] {
            for (mask, limit) in [(0, 0), (1, 20), ((1 << 48) - 1, ALL_EVENTS)] {
                for bits in 0..8 {
                    let [receipts, data, is_dm] = [1, 2, 4].map(|bit| bits & bit != 0);
                    let sent = Sent { stand, mask, limit, receipts, data, is_dm, behind: Some(4) };
                    assert_eq!(Sent::unpack(sent.pack(), Some(4)), sent);
                }
            }
        }
    }
}
