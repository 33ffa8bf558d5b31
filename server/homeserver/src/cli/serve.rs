//! `myelin serve`

use super::ConfigFiles;
use crate::{
    exit::{Exit, Failure},
    serve,
};

/// Run the server until it is told to stop.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) files: ConfigFiles,
}

impl Serve {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let config = self.files.load()?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("myelin").build().map_err(
                |error| Failure::new(Exit::System, anyhow::Error::new(error).context("start worker threads")),
            )?;
        runtime.block_on(serve::serve(self.files, config))
    }
}
