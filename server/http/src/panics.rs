//! A panic in a handler becomes an answer and one line of the log.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
};

thread_local! {
    static IN_HANDLER: Cell<bool> = const { Cell::new(false) };
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What a handler's panic said, and where.
pub(crate) struct Panic {
    pub(crate) message: String,
    pub(crate) location: String,
}

/// Keeps the process's panic hook from reporting what [`catch`] reports with the request's id. Everything outside of
/// a handler goes to the hook that was there before.
pub(crate) fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if IN_HANDLER.get() {
                LOCATION.set(info.location().map(ToString::to_string));
            } else {
                previous(info);
            }
        }));
    });
}

/// Runs one step of a handler.
pub(crate) fn catch<T>(step: impl FnOnce() -> T) -> Result<T, Panic> {
    let outer = IN_HANDLER.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(step));
    IN_HANDLER.set(outer);
    outcome.map_err(|payload| Panic {
        message: message(&*payload).to_owned(),
        location: LOCATION.take().unwrap_or_else(|| "an unknown place".to_owned()),
    })
}

fn message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
