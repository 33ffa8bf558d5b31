//! Logs, to the standard error stream: text for people or JSON for collectors.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, fmt,
    layer::SubscriberExt as _,
    reload,
    util::{SubscriberInitExt as _, TryInitError},
};

use crate::config::{Log, LogFormat};

/// Changes the level of the logs while the process runs.
#[derive(Clone, Debug)]
pub struct Logs {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Why logs could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// `log.level` means nothing.
    #[error("log.level cannot be understood")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    /// The process has logs already.
    #[error("set up logs")]
    Twice(#[from] TryInitError),
    /// The subscriber that was set up is gone.
    #[error("change the level of the logs")]
    Gone(#[from] reload::Error),
}

/// Starts to log, for the whole process.
///
/// # Errors
/// If the level means nothing, or the process logs already.
pub fn init(settings: &Log) -> Result<Logs, LogsError> {
    let (filter, handle) = reload::Layer::new(filter(&settings.level)?);
    let lines = match settings.format {
        LogFormat::Text => fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => fmt::layer()
            .with_writer(io::stderr)
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init()?;
    Ok(Logs { filter: handle })
}

/// The filter for a level. ruma tells of each event that is allowed, which is every event; who wants that says so.
fn filter(level: &str) -> Result<EnvFilter, LogsError> {
    const QUIET: &str = "ruma_state_res=warn";
    EnvFilter::try_new(level)?;
    Ok(EnvFilter::try_new(format!("{QUIET},{level}"))?)
}

impl Logs {
    /// Changes the level from now on; the value has the form of `log.level`.
    ///
    /// # Errors
    /// If it means nothing; the level then stays.
    pub fn set_level(&self, level: &str) -> Result<(), LogsError> {
        self.filter.reload(filter(level)?)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tracing::level_filters::LevelFilter;

    use crate::config::Log;

    /// A new level takes effect at once, and one that means nothing leaves the old one in place. (One test, as the
    /// process has one subscriber.)
    #[test]
    fn level_can_change() {
        let logs = super::init(&Log::default()).unwrap();
        assert_eq!(LevelFilter::current(), LevelFilter::INFO);
        logs.set_level("warn,myelin_store=trace").unwrap();
        assert_eq!(LevelFilter::current(), LevelFilter::TRACE);
        assert!(logs.set_level("a=b=c").is_err());
        assert_eq!(LevelFilter::current(), LevelFilter::TRACE);
        assert!(super::init(&Log::default()).is_err(), "a second subscriber is refused");
    }
}
