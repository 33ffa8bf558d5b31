//! Events in the order in which they follow each other.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::Arc,
};

use myelin_store::Event;
use ruma::OwnedEventId;

use super::links::prev_events;

/// Sorts events so that each comes after those that it follows, whatever depth it claims to have; among those that do
/// not hang on each other, the one of least depth comes first.
pub(super) fn oldest_first(events: Vec<Arc<Event>>) -> Vec<Arc<Event>> {
    let places: HashMap<&OwnedEventId, usize> =
        events.iter().enumerate().map(|(place, event)| (&event.event_id, place)).collect();
    let mut followers: Vec<Vec<usize>> = vec![Vec::new(); events.len()];
    let mut waits_for = vec![0_usize; events.len()];
    for (place, event) in events.iter().enumerate() {
        let mut before: Vec<usize> = prev_events(event).iter().filter_map(|id| places.get(id).copied()).collect();
        before.sort_unstable();
        before.dedup();
        waits_for[place] = before.len();
        before.into_iter().for_each(|earlier| followers[earlier].push(place));
    }
    let key = |place: usize| Reverse((events[place].depth, events[place].nid, place));
    let mut ready: BinaryHeap<_> = (0..events.len()).filter(|&place| waits_for[place] == 0).map(key).collect();
    let mut order = Vec::with_capacity(events.len());
    while let Some(Reverse((_, _, place))) = ready.pop() {
        order.push(place);
        for &follower in &followers[place] {
            waits_for[follower] -= 1;
            if waits_for[follower] == 0 {
                ready.push(key(follower));
            }
        }
    }
    // Event ids are hashes, so that there can be no circle; in room versions 1 and 2 they are not.
    order.extend((0..events.len()).filter(|&place| waits_for[place] > 0));
    order.into_iter().map(|place| events[place].clone()).collect()
}
