//! `[presence]`

use super::section::section;

section! {
    /// Who is online, as others see it.
    pub struct Presence {
        /// Tell people of the presence of those they share rooms with. Large servers turn it off.
        pub enabled: bool = true,
    }
}
