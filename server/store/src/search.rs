//! Texts that can be searched for: written by one replica, which follows the stream, and read by all.

use std::collections::BTreeMap;

use crate::{
    Event, Lease, Result, Store,
    database::{Engine, Transaction},
    events::{EventRow, select_events},
    sql::{Ids, Sql, execute, json_rows, row, rows},
};

/// The duty of keeping the index, and the name of its position in the stream.
pub const SEARCH_INDEX: &str = "search_index";
/// The name of its position in the history that was fetched later, which goes down.
pub const SEARCH_HISTORY: &str = "search_history";

/// Matches that are ranked at the most: the newest ones.
const RANKED_MAX: i64 = 10_000;
/// Texts of a room that are removed at once.
const REMOVED_AT_ONCE: i64 = 1_000;
/// A search in more rooms than these is not narrowed by the index itself.
const NARROWED_ROOMS_MAX: usize = 64;

/// What of an event is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextField {
    /// The body of a message.
    Body,
    /// The name of a room.
    Name,
    /// The topic of a room.
    Topic,
}

impl TextField {
    fn bit(self) -> i64 {
        match self {
            Self::Body => 1,
            Self::Name => 2,
            Self::Topic => 4,
        }
    }
}

/// A text to be found.
#[derive(Clone, Debug)]
pub struct SearchText {
    /// The event's place.
    pub pos: i64,
    /// The event.
    pub event_nid: i64,
    /// Its room.
    pub room_nid: i64,
    /// Its sender.
    pub sender_nid: i64,
    /// What of it this is.
    pub field: TextField,
    /// The words, in their order: letters and digits alone.
    pub words: Vec<String>,
}

/// The order of what is found, and where it goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SearchOrder {
    /// The newest first: those before a place.
    Recent {
        /// The place.
        before: i64,
    },
    /// The best first, among the newest thousands: those behind a match.
    Rank {
        /// How well it matches.
        rank: f64,
        /// Its place.
        pos: i64,
    },
}

/// What is searched for.
#[derive(Clone, Debug)]
pub struct TextSearch<'a> {
    /// Words that follow each other; all of these have to be there. Letters and digits alone.
    pub phrases: &'a [Vec<String>],
    /// The rooms.
    pub room_nids: &'a [i64],
    /// What of the events.
    pub fields: &'a [TextField],
    /// The senders; all if there are none here.
    pub sender_nids: &'a [i64],
    /// The order.
    pub order: SearchOrder,
    /// How many are wanted at the most.
    pub limit: usize,
}

/// A text that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TextMatch {
    /// The event's place.
    pub pos: i64,
    /// The event.
    pub event_nid: i64,
    /// Its room.
    pub room_nid: i64,
    /// Its sender.
    pub sender_nid: i64,
    /// How well it matches: more is better.
    pub rank: f64,
}

/// The columns of [`TextMatch`], in their order.
type MatchRow = (i64, i64, i64, i64, f64);

/// What the index has to learn of a part of the stream or of history.
#[derive(Clone, Debug, Default)]
pub struct IndexStep<'a> {
    /// Texts to be found from now on.
    pub texts: &'a [SearchText],
    /// The places of those that are to be found no more.
    pub removed: &'a [i64],
    /// The position to remember, by its name.
    pub position: Option<(&'static str, i64)>,
}

/// The matches of a search: parameters 1 to 6, and 7 for those that are ranked.
macro_rules! matches {
    ($before:literal, $after:literal) => {
        Sql {
            sqlite: concat!(
                $before,
                "SELECT t.pos AS pos, t.event_nid AS event_nid, t.room_nid AS room_nid, t.sender_nid AS sender_nid,
                        -bm25(search_words, 1.0, 0.0) AS rank
                 FROM search_words CROSS JOIN search_texts AS t ON t.pos = search_words.rowid
                 WHERE search_words MATCH $1 AND search_words.rowid < $2
                   AND t.room_nid IN (SELECT value FROM json_each($3)) AND t.field & $4 <> 0
                   AND ($5 = '[]' OR t.sender_nid IN (SELECT value FROM json_each($5))) AND $6 <> ''
                 ORDER BY search_words.rowid DESC LIMIT $7",
                $after
            ),
            postgres: concat!(
                $before,
                "SELECT pos, event_nid, room_nid, sender_nid,
                        CAST(ts_rank(words, CAST(CAST($6 AS text) AS tsquery)) AS double precision) AS rank
                 FROM search_texts
                 WHERE words @@ CAST(CAST($1 AS text) AS tsquery) AND pos < $2
                   AND room_nid = ANY($3) AND field & $4 <> 0
                   AND (cardinality($5) = 0 OR sender_nid = ANY($5))
                 ORDER BY pos DESC LIMIT $7",
                $after
            ),
        }
    };
}

impl Store {
    /// The events at the positions `(from, to]`, in their order, past the memory.
    pub async fn stream_events(&self, from: i64, to: i64) -> Result<Vec<Event>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<EventRow> =
            rows!(reader, select_events!("WHERE pos > $1 AND pos <= $2 ORDER BY pos"), from, to)?;
        found.into_iter().map(Event::try_from).collect()
    }

    /// The events of history below a position, the highest first, past the memory.
    pub async fn history_events(&self, below: i64, limit: usize) -> Result<Vec<Event>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<EventRow> =
            rows!(reader, select_events!("WHERE pos < $1 ORDER BY pos DESC LIMIT $2"), below.min(0), count(limit))?;
        found.into_iter().map(Event::try_from).collect()
    }

    /// Changes the index. False when the lease is held no more: nothing is written then.
    pub async fn write_index(&self, lease: &Lease, step: &IndexStep<'_>) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        if !Self::is_held(&mut transaction, lease).await? {
            return Ok(false);
        }
        if !step.texts.is_empty() {
            insert(&mut transaction, step.texts).await?;
        }
        if !step.removed.is_empty() {
            remove(&mut transaction, step.removed).await?;
        }
        if let Some((name, pos)) = step.position {
            execute!(
                transaction,
                "INSERT INTO duty_positions (name, pos) VALUES ($1, $2)
                 ON CONFLICT (name) DO UPDATE SET pos = excluded.pos",
                name,
                pos
            )?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// Removes some texts of a room from the index; `Some(true)` if there may be more, `None` when the lease is held no
    /// more.
    pub async fn unindex_room(&self, lease: &Lease, room_nid: i64) -> Result<Option<bool>> {
        let mut transaction = self.database.begin().await?;
        if !Self::is_held(&mut transaction, lease).await? {
            return Ok(None);
        }
        let found: Vec<(i64,)> =
            rows!(transaction, "SELECT pos FROM search_texts WHERE room_nid = $1 LIMIT $2", room_nid, REMOVED_AT_ONCE)?;
        let places: Vec<i64> = found.into_iter().map(|(pos,)| pos).collect();
        remove(&mut transaction, &places).await?;
        transaction.commit().await?;
        Ok(Some(places.len() as i64 == REMOVED_AT_ONCE))
    }

    /// What is found.
    pub async fn search_texts(&self, search: &TextSearch<'_>) -> Result<Vec<TextMatch>> {
        let Some((query, words)) = self.text_query(search) else { return Ok(Vec::new()) };
        let fields = bits(search.fields);
        let mut reader = self.database.reader().await?;
        let found: Vec<MatchRow> = match search.order {
            SearchOrder::Recent { before } => rows!(
                reader,
                matches!("", ""),
                query.as_str(),
                before,
                Ids(search.room_nids),
                fields,
                Ids(search.sender_nids),
                words.as_str(),
                count(search.limit)
            )?,
            SearchOrder::Rank { rank, pos } => rows!(
                reader,
                matches!(
                    "SELECT pos, event_nid, room_nid, sender_nid, rank FROM (",
                    ") AS found WHERE rank < $8 OR (rank = $8 AND pos < $9) ORDER BY rank DESC, pos DESC LIMIT $10"
                ),
                query.as_str(),
                i64::MAX,
                Ids(search.room_nids),
                fields,
                Ids(search.sender_nids),
                words.as_str(),
                RANKED_MAX,
                rank,
                pos,
                count(search.limit)
            )?,
        };
        let to_match =
            |(pos, event_nid, room_nid, sender_nid, rank)| TextMatch { pos, event_nid, room_nid, sender_nid, rank };
        Ok(found.into_iter().map(to_match).collect())
    }

    /// How many are found, but not more than a number of them, and whether or not the user may see them.
    pub async fn count_texts(&self, search: &TextSearch<'_>, max: i64) -> Result<i64> {
        let Some((query, words)) = self.text_query(search) else { return Ok(0) };
        let mut reader = self.database.reader().await?;
        let (found,): (i64,) = row!(
            reader,
            matches!("SELECT COUNT(*) FROM (", ") AS found"),
            query.as_str(),
            i64::MAX,
            Ids(search.room_nids),
            bits(search.fields),
            Ids(search.sender_nids),
            words.as_str(),
            max
        )?;
        Ok(found)
    }

    /// The query in the engine's language, with and without the rooms; none if nothing can be found.
    fn text_query(&self, search: &TextSearch<'_>) -> Option<(String, String)> {
        if search.phrases.iter().all(Vec::is_empty) || search.room_nids.is_empty() || search.fields.is_empty() {
            return None;
        }
        let rooms = if search.room_nids.len() <= NARROWED_ROOMS_MAX { search.room_nids } else { &[] };
        let phrases = search.phrases.iter().filter(|phrase| !phrase.is_empty());
        Some(match &self.database {
            crate::Database::Sqlite { .. } => {
                let words = join(phrases.map(|phrase| format!("\"{}\"", phrase.join(" "))), " AND ");
                let words = format!("words : ({words})");
                let rooms = join(rooms.iter().map(|room| format!("\"r{room}\"")), " OR ");
                (if rooms.is_empty() { words.clone() } else { format!("{words} AND room : ({rooms})") }, words)
            }
            crate::Database::Postgres { .. } => {
                let quoted = |phrase: &Vec<String>| join(phrase.iter().map(|word| format!("'{word}'")), " <-> ");
                let words = join(phrases.map(|phrase| format!("({})", quoted(phrase))), " & ");
                let rooms = join(rooms.iter().map(|room| format!("'!{room}'")), " | ");
                (if rooms.is_empty() { words.clone() } else { format!("{words} & ({rooms})") }, words)
            }
        })
    }
}

fn join(parts: impl Iterator<Item = String>, between: &str) -> String {
    parts.collect::<Vec<_>>().join(between)
}

fn bits(fields: &[TextField]) -> i64 {
    fields.iter().fold(0, |bits, field| bits | field.bit())
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

async fn insert(transaction: &mut Transaction, texts: &[SearchText]) -> Result<()> {
    match transaction.engine() {
        Engine::Sqlite(connection) => {
            let rows: Vec<_> = texts
                .iter()
                .map(|text| (text.pos, text.event_nid, text.room_nid, text.sender_nid, text.field.bit()))
                .collect();
            sqlx::query(
                "INSERT OR REPLACE INTO search_texts (pos, event_nid, room_nid, sender_nid, field)
                 SELECT w.value->>0, w.value->>1, w.value->>2, w.value->>3, w.value->>4 FROM json_each($1) AS w",
            )
            .bind(json_rows(&rows))
            .execute(&mut *connection)
            .await?;
            let rows: Vec<_> =
                texts.iter().map(|text| (text.pos, text.words.join(" "), format!("r{}", text.room_nid))).collect();
            sqlx::query(
                "INSERT OR REPLACE INTO search_words (rowid, words, room)
                 SELECT w.value->>0, w.value->>1, w.value->>2 FROM json_each($1) AS w",
            )
            .bind(json_rows(&rows))
            .execute(connection)
            .await?;
        }
        Engine::Postgres(connection) => {
            sqlx::query(
                "INSERT INTO search_texts (pos, event_nid, room_nid, sender_nid, field, words)
                 SELECT w.pos, w.event_nid, w.room_nid, w.sender_nid, w.field, CAST(w.words AS tsvector)
                 FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[])
                      AS w(pos, event_nid, room_nid, sender_nid, field, words)
                 ON CONFLICT (pos) DO UPDATE SET event_nid = excluded.event_nid, room_nid = excluded.room_nid,
                     sender_nid = excluded.sender_nid, field = excluded.field, words = excluded.words",
            )
            .bind(texts.iter().map(|text| text.pos).collect::<Vec<_>>())
            .bind(texts.iter().map(|text| text.event_nid).collect::<Vec<_>>())
            .bind(texts.iter().map(|text| text.room_nid).collect::<Vec<_>>())
            .bind(texts.iter().map(|text| text.sender_nid).collect::<Vec<_>>())
            .bind(texts.iter().map(|text| text.field.bit()).collect::<Vec<_>>())
            .bind(texts.iter().map(vector).collect::<Vec<_>>())
            .execute(connection)
            .await?;
        }
    }
    Ok(())
}

/// The words with their places in the text, and the room, as PostgreSQL reads them.
fn vector(text: &SearchText) -> String {
    let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (place, word) in text.words.iter().enumerate() {
        places.entry(word).or_default().push((place + 1).to_string());
    }
    let words = places.into_iter().map(|(word, places)| format!("'{word}':{}", places.join(",")));
    join(words.chain([format!("'!{}'", text.room_nid)]), " ")
}

async fn remove(transaction: &mut Transaction, places: &[i64]) -> Result<()> {
    match transaction.engine() {
        Engine::Sqlite(connection) => {
            for statement in [
                "DELETE FROM search_texts WHERE pos IN (SELECT value FROM json_each($1))",
                "DELETE FROM search_words WHERE rowid IN (SELECT value FROM json_each($1))",
            ] {
                sqlx::query(statement).bind(Ids(places)).execute(&mut *connection).await?;
            }
        }
        Engine::Postgres(connection) => {
            sqlx::query("DELETE FROM search_texts WHERE pos = ANY($1)").bind(Ids(places)).execute(connection).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{IndexStep, SEARCH_INDEX, SearchOrder, SearchText, TextField, TextSearch};
    use crate::{
        Candidate, Lease, Store,
        testing::{Fresh, on_both},
    };

    async fn lead(store: &Store) -> Lease {
        let candidate = Candidate { name: SEARCH_INDEX, holder: "a".to_owned(), ttl: Duration::from_secs(600) };
        store.take_lease(&candidate).await.unwrap().unwrap()
    }

    fn text(pos: i64, room_nid: i64, text: &str) -> SearchText {
        SearchText {
            pos,
            event_nid: pos + 1_000_000,
            room_nid,
            sender_nid: pos.rem_euclid(3),
            field: if pos % 10 == 0 { TextField::Topic } else { TextField::Body },
            words: text.split(' ').map(str::to_owned).collect(),
        }
    }

    fn phrases(text: &str) -> Vec<Vec<String>> {
        text.split('+').map(|phrase| phrase.split(' ').map(str::to_owned).collect()).collect()
    }

    const RECENT: SearchOrder = SearchOrder::Recent { before: i64::MAX };
    const RANK: SearchOrder = SearchOrder::Rank { rank: f64::MAX, pos: i64::MAX };
    const ALL: &[TextField] = &[TextField::Body, TextField::Name, TextField::Topic];

    async fn places(store: &Store, text: &str, rooms: &[i64], order: SearchOrder) -> Vec<i64> {
        let search =
            TextSearch { phrases: &phrases(text), room_nids: rooms, fields: ALL, sender_nids: &[], order, limit: 100 };
        let found = store.search_texts(&search).await.unwrap();
        assert!(found.iter().all(|found| found.event_nid == found.pos + 1_000_000));
        assert_eq!(store.count_texts(&search, 1000).await.unwrap(), found.len() as i64);
        found.into_iter().map(|found| found.pos).collect()
    }

    /// Words and phrases are found in the rooms that are asked for, in both orders; what is removed is not, and a holder
    /// that lost the lease changes nothing.
    #[tokio::test]
    async fn words_are_found() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let lease = lead(&store).await;
            let texts = [
                text(-5, 7, "early history of marsh"),
                text(1, 7, "marsh frogs and more frogs and frogs"),
                text(2, 7, "frogs of the marsh with many other words beside them"),
                text(3, 8, "marsh"),
                text(10, 7, "東 京 と marsh"),
            ];
            let step = IndexStep { texts: &texts, removed: &[], position: Some((SEARCH_INDEX, 10)) };
            assert!(store.write_index(&lease, &step).await.unwrap());
            // Once more is no more.
            assert!(store.write_index(&lease, &step).await.unwrap());
            assert_eq!(store.duty_position(SEARCH_INDEX).await.unwrap(), 10);
            assert_eq!(places(&store, "marsh", &[7, 8], RECENT).await, [10, 3, 2, 1, -5]);
            assert_eq!(places(&store, "marsh", &[7], RECENT).await, [10, 2, 1, -5]);
            let many: Vec<i64> = (0..200).collect();
            assert_eq!(places(&store, "marsh", &many, RECENT).await, [10, 3, 2, 1, -5]);
            assert_eq!(places(&store, "frogs+marsh", &[7], RECENT).await, [2, 1]);
            assert_eq!(places(&store, "frogs+marsh", &[7], RANK).await, [1, 2]);
            assert_eq!(places(&store, "marsh frogs", &[7], RECENT).await, [1]);
            assert_eq!(places(&store, "京 と", &[7], RECENT).await, [10]);
            assert!(places(&store, "京 東", &[7], RECENT).await.is_empty());
            assert!(places(&store, "mars", &[7], RECENT).await.is_empty());
            assert!(places(&store, "marsh", &[], RECENT).await.is_empty());
            assert!(places(&store, "r7", &[7], RECENT).await.is_empty(), "a room is no word");

            let step = IndexStep { removed: &[2, -5], ..IndexStep::default() };
            assert!(store.write_index(&lease, &step).await.unwrap());
            assert_eq!(places(&store, "marsh", &[7, 8], RECENT).await, [10, 3, 1]);
            assert_eq!(store.unindex_room(&lease, 7).await.unwrap(), Some(false));
            assert_eq!(places(&store, "marsh", &[7, 8], RECENT).await, [3]);
            assert!(store.release_lease(&lease).await.unwrap());
            assert!(!store.write_index(&lease, &IndexStep { texts: &texts, ..step }).await.unwrap());
            assert_eq!(store.unindex_room(&lease, 8).await.unwrap(), None);
            assert_eq!(places(&store, "marsh", &[7, 8], RECENT).await, [3]);
            store.close().await;
        })
        .await;
    }

    /// Pages go on where the last one ended, in both orders; fields and senders narrow what is found.
    #[tokio::test]
    async fn matches_come_in_pages() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let lease = lead(&store).await;
            let texts: Vec<_> = (1..=60)
                .map(|pos| text(pos, 7, &format!("word {}", "word ".repeat(pos as usize % 4).trim())))
                .collect();
            let texts: Vec<_> = texts
                .into_iter()
                .map(|text| SearchText {
                    words: text.words.into_iter().filter(|word| !word.is_empty()).collect(),
                    ..text
                })
                .collect();
            assert!(store.write_index(&lease, &IndexStep { texts: &texts, ..IndexStep::default() }).await.unwrap());
            let phrases = phrases("word");
            for start in [RECENT, RANK] {
                let (mut order, mut seen, mut ranks) = (start, Vec::new(), Vec::new());
                loop {
                    let search = TextSearch {
                        phrases: &phrases,
                        room_nids: &[7],
                        fields: &[TextField::Body],
                        sender_nids: &[],
                        order,
                        limit: 7,
                    };
                    let page = store.search_texts(&search).await.unwrap();
                    let Some(last) = page.last() else { break };
                    order = match order {
                        SearchOrder::Recent { .. } => SearchOrder::Recent { before: last.pos },
                        SearchOrder::Rank { .. } => SearchOrder::Rank { rank: last.rank, pos: last.pos },
                    };
                    ranks.extend(page.iter().map(|found| found.rank));
                    seen.extend(page.iter().map(|found| found.pos));
                }
                if start == RECENT {
                    assert!(seen.is_sorted_by(|a, b| a > b));
                } else {
                    assert!(ranks.is_sorted_by(|a, b| a >= b));
                }
                seen.sort_unstable();
                assert_eq!(seen, (1..=60).filter(|pos| pos % 10 != 0).collect::<Vec<_>>());
            }
            let search = TextSearch {
                phrases: &phrases,
                room_nids: &[7],
                fields: ALL,
                sender_nids: &[0, 2],
                order: RECENT,
                limit: 100,
            };
            assert_eq!(store.search_texts(&search).await.unwrap().len(), 40);
            assert_eq!(store.count_texts(&search, 30).await.unwrap(), 30);
            store.close().await;
        })
        .await;
    }
}
