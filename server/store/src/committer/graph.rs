//! What the commit writes of the graph besides the events: their edges, and where it has gaps.

use super::Append;
use crate::{
    Error, Event, Result,
    database::{Engine, Transaction},
    sql::{Ids, Texts, execute},
};

/// An event of a write.
pub(super) type Placed<'a> = (&'a Append, &'a Event);

/// Gives stored outliers their place in the room.
pub(super) async fn promote(transaction: &mut Transaction, known: &[Placed<'_>]) -> Result<()> {
    for (_, event) in known {
        let hit = execute!(
            transaction,
            "UPDATE events SET pos = $2, state_before = $3, room_state = $4, state_after = $5, replaces = $6, flags = $7
             WHERE event_nid = $1",
            event.nid,
            event.pos,
            event.state_before,
            event.room_state,
            event.forked_state,
            event.replaces,
            event.flags
        )?;
        if hit != 1 {
            return Err(Error::Missing { what: "outlier" });
        }
    }
    Ok(())
}

/// Writes edges, gaps and stripped state.
pub(super) async fn write(transaction: &mut Transaction, appends: &[&Append]) -> Result<()> {
    write_auth_edges(transaction, appends).await?;
    for append in appends {
        if !append.gaps.is_empty() {
            open_gaps(transaction, append).await?;
        }
        if !append.filled.is_empty() {
            let event_ids: Vec<&str> = append.filled.iter().map(|event_id| event_id.as_str()).collect();
            execute!(
                transaction,
                crate::sql::listed!("DELETE FROM missing_events WHERE room_nid = $1 AND event_id ", "$2", ""),
                append.room_nid,
                Texts(&event_ids)
            )?;
        }
        for (target_id, event_nid) in &append.waiting_redactions {
            execute!(
                transaction,
                "INSERT INTO waiting_redactions (target_id, event_nid) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                target_id.as_str(),
                *event_nid
            )?;
        }
        if let Some((event_nid, json)) = &append.stripped_state {
            execute!(transaction, "INSERT INTO stripped_state (event_nid, json) VALUES ($1, $2)", *event_nid, &**json)?;
        }
    }
    Ok(())
}

async fn write_auth_edges(transaction: &mut Transaction, appends: &[&Append]) -> Result<()> {
    let (nids, auth): (Vec<i64>, Vec<String>) = appends
        .iter()
        .flat_map(|append| &append.auth_edges)
        .map(|(nid, auth)| (*nid, serde_json::to_string(auth).expect("numbers are JSON")))
        .unzip();
    if nids.is_empty() {
        return Ok(());
    }
    match transaction.engine() {
        Engine::Sqlite(connection) => {
            for (nid, auth) in nids.iter().zip(&auth) {
                sqlx::query("INSERT INTO event_auth (event_nid, auth) VALUES ($1, $2)")
                    .bind(nid)
                    .bind(auth.as_str())
                    .execute(&mut *connection)
                    .await?;
            }
        }
        Engine::Postgres(connection) => {
            sqlx::query("INSERT INTO event_auth (event_nid, auth) SELECT * FROM unnest($1::bigint[], $2::text[])")
                .bind(Ids(&nids))
                .bind(auth)
                .execute(&mut *connection)
                .await?;
        }
    }
    Ok(())
}

async fn open_gaps(transaction: &mut Transaction, append: &Append) -> Result<()> {
    for (event_id, by) in &append.gaps {
        execute!(
            transaction,
            "INSERT INTO missing_events (room_nid, event_id, event_nid) VALUES ($1, $2, $3)
             ON CONFLICT (room_nid, event_id) DO NOTHING",
            append.room_nid,
            event_id.as_str(),
            *by
        )?;
    }
    Ok(())
}
