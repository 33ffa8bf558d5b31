//! Service records, in the order in which they are tried: RFC 2782.

use rand::Rng;

use super::Srv;
use crate::http::{Endpoint, Host};

/// Targets of service records that are tried.
const TARGETS_MAX: usize = 8;
/// Records that are looked at.
const RECORDS_MAX: usize = 64;

/// The targets by priority, and among those of one priority by chance according to their weights. None if the service
/// is said not to be there.
pub(crate) fn in_order(mut records: Vec<Srv>, rng: &mut impl Rng) -> Vec<Endpoint> {
    records.truncate(RECORDS_MAX);
    records.retain(|record| !record.target.is_empty());
    let mut order = Vec::with_capacity(records.len());
    while let Some(priority) = records.iter().map(|record| record.priority).min() {
        let same: u32 = records.iter().filter(|r| r.priority == priority).map(|r| u32::from(r.weight)).sum();
        let mut chosen = rng.random_range(0..=same);
        let place = records.iter().position(|record| {
            if record.priority != priority {
                return false;
            }
            let weight = u32::from(record.weight);
            if chosen <= weight {
                return true;
            }
            chosen -= weight;
            false
        });
        // The chosen number is at most the sum of the weights, so some record has it.
        let Some(place) = place else { break };
        let record = records.swap_remove(place);
        order.push(Endpoint { host: Host::Name(record.target), port: record.port });
    }
    order.truncate(TARGETS_MAX);
    order
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::{Srv, in_order};

    fn srv(priority: u16, weight: u16, target: &str) -> Srv {
        Srv { priority, weight, port: 8448, target: target.to_owned() }
    }

    /// Lower priorities come first, whatever the weights; heavier ones come first more often.
    #[test]
    fn by_priority_and_weight() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut heavy_first = 0;
        for _ in 0..1000 {
            let records = vec![srv(20, 65535, "last"), srv(10, 10, "light"), srv(10, 90, "heavy"), srv(5, 0, "first")];
            let order: Vec<_> = in_order(records, &mut rng).iter().map(ToString::to_string).collect();
            assert_eq!((order[0].as_str(), order[3].as_str(), order.len()), ("first:8448", "last:8448", 4));
            heavy_first += usize::from(order[1] == "heavy:8448");
        }
        assert!((850..950).contains(&heavy_first), "{heavy_first}");
    }

    /// A target that is the root says that there is no such service; no number of records is too much.
    #[test]
    fn none_and_many() {
        let mut rng = StdRng::seed_from_u64(1);
        assert!(in_order(vec![srv(0, 0, "")], &mut rng).is_empty());
        let many = (0..60000).map(|n| srv(n, 0, "a")).collect();
        assert_eq!(in_order(many, &mut rng).len(), 8);
    }
}
