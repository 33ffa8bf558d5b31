//! What the commit writes of relations.

use std::collections::BTreeMap;

use super::Relation;
use crate::{
    Append, Event, Result,
    database::{Engine, Transaction},
    sql::{execute, optional},
};

/// A relation to write.
struct Row<'a> {
    event: &'a Event,
    pos: i64,
    relation: Relation<'a>,
}

impl<'a> Row<'a> {
    fn of(event: &'a Event) -> Option<Self> {
        Some(Self { pos: event.pos?, relation: Relation::of(event)?, event })
    }

    fn ts(&self) -> i64 {
        i64::try_from(self.event.origin_server_ts()).unwrap_or(i64::MAX)
    }
}

/// Writes the relations of all events that get their places.
pub(crate) async fn insert(transaction: &mut Transaction, appends: &[&Append]) -> Result<()> {
    let events = appends.iter().flat_map(|append| append.history.iter().chain(&append.events));
    let events = events.filter(|event| event.is_shown());
    let rows: Vec<Row<'_>> = events.filter_map(Row::of).collect();
    if rows.is_empty() {
        return Ok(());
    }
    insert_relations(transaction, &rows).await?;
    // By room and root: the newest position, and how many there are.
    let mut threads: BTreeMap<(i64, &str), (i64, i64)> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.relation.rel_type == "m.thread") {
        let thread = threads.entry((row.event.room_nid, &row.relation.parent_id)).or_insert((row.pos, 0));
        *thread = (thread.0.max(row.pos), thread.1 + 1);
    }
    for ((room_nid, root_id), (latest_pos, count)) in threads {
        execute!(
            transaction,
            "INSERT INTO threads (room_nid, root_id, latest_pos, count) VALUES ($1, $2, $3, $4)
             ON CONFLICT (room_nid, root_id) DO UPDATE SET count = threads.count + excluded.count,
                 latest_pos = CASE WHEN threads.latest_pos > excluded.latest_pos
                                   THEN threads.latest_pos ELSE excluded.latest_pos END",
            room_nid,
            root_id,
            latest_pos,
            count
        )?;
    }
    Ok(())
}

async fn insert_relations(transaction: &mut Transaction, rows: &[Row<'_>]) -> Result<()> {
    match transaction.engine() {
        Engine::Sqlite(connection) => {
            for row in rows {
                sqlx::query(
                    "INSERT INTO event_relations (event_nid, room_nid, parent_id, rel_type, event_type, sender_nid, ts,
                                                  pos, is_edit)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                )
                .bind(row.event.nid)
                .bind(row.event.room_nid)
                .bind(&*row.relation.parent_id)
                .bind(&*row.relation.rel_type)
                .bind(row.event.event_type())
                .bind(row.event.sender_nid)
                .bind(row.ts())
                .bind(row.pos)
                .bind(row.relation.is_edit)
                .execute(&mut *connection)
                .await?;
            }
        }
        Engine::Postgres(connection) => {
            let column = |of: fn(&Row<'_>) -> i64| rows.iter().map(of).collect::<Vec<i64>>();
            sqlx::query(
                "INSERT INTO event_relations (event_nid, room_nid, parent_id, rel_type, event_type, sender_nid, ts, pos,
                                              is_edit)
                 SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::bigint[],
                                      $7::bigint[], $8::bigint[], $9::boolean[])",
            )
            .bind(column(|row| row.event.nid))
            .bind(column(|row| row.event.room_nid))
            .bind(rows.iter().map(|row| &*row.relation.parent_id).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| &*row.relation.rel_type).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.event.event_type()).collect::<Vec<_>>())
            .bind(column(|row| row.event.sender_nid))
            .bind(column(|row| row.ts()))
            .bind(column(|row| row.pos))
            .bind(rows.iter().map(|row| row.relation.is_edit).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
        }
    }
    Ok(())
}

/// Takes an event that is redacted out of what it relates to.
pub(crate) async fn forget(transaction: &mut Transaction, event_nid: i64) -> Result<()> {
    let gone: Option<(i64, String, String)> = optional!(
        transaction,
        "DELETE FROM event_relations WHERE event_nid = $1 RETURNING room_nid, parent_id, rel_type",
        event_nid
    )?;
    let Some((room_nid, root_id, _)) = gone.filter(|(_, _, rel_type)| rel_type == "m.thread") else { return Ok(()) };
    execute!(
        transaction,
        "UPDATE threads SET count = count - 1, latest_pos = COALESCE(
             (SELECT MAX(r.pos) FROM event_relations AS r
              WHERE r.room_nid = $1 AND r.parent_id = $2 AND r.rel_type = 'm.thread'), latest_pos)
         WHERE room_nid = $1 AND root_id = $2",
        room_nid,
        root_id.as_str()
    )?;
    execute!(
        transaction,
        "DELETE FROM threads WHERE room_nid = $1 AND root_id = $2 AND count <= 0",
        room_nid,
        root_id.as_str()
    )?;
    Ok(())
}
