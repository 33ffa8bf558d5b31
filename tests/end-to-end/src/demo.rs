use std::{
    fs::{self, File},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    eventually, free_port, homeserver,
    process::{mortal, spawn},
};

const TIMEOUT: Duration = Duration::from_secs(90);

/// `myelin demo`, running.
pub struct Demo {
    folder: TempDir,
    child: Child,
}

impl Demo {
    /// Starts it and waits until it has said all.
    ///
    /// # Panics
    ///
    /// When it ends instead.
    pub async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("myelin-test-").tempdir().expect("make a folder");
        let output = File::create(folder.path().join("output")).expect("make a file");
        let mut command = mortal(&homeserver::binary());
        command
            .args(["demo", "--first-port", &free_port().to_string()])
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stderr(output.try_clone().expect("share the file"))
            .stdout(output);
        let mut demo = Self { folder, child: spawn(command).expect("start the demo") };
        eventually("the demo is ready", TIMEOUT, || {
            let ended = demo.child.try_wait().expect("ask for the demo's status");
            assert!(ended.is_none(), "the demo ended: {ended:?}\n{}", demo.told());
            let ready = demo.told().contains("Ctrl+C");
            async move { ready.then_some(()) }
        })
        .await;
        demo
    }

    /// What it printed.
    pub fn told(&self) -> String {
        fs::read_to_string(self.folder.path().join("output")).expect("read its output")
    }

    /// What it has in the folder of temporary files.
    pub fn leftovers(&self) -> Vec<String> {
        let files = fs::read_dir(self.folder.path()).expect("look into the folder");
        let names = files.map(|file| file.expect("read the folder").file_name().to_string_lossy().into_owned());
        names.filter(|name| name != "output").collect()
    }

    /// Asks it to end, as Ctrl+C does, and waits until it has.
    pub async fn interrupt(&mut self) -> ExitStatus {
        let asked = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().expect("run kill");
        assert!(asked.success(), "kill: {asked}");
        eventually("the demo ends", TIMEOUT, || {
            let ended = self.child.try_wait().expect("ask for the demo's status");
            async move { ended }
        })
        .await
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("kill the demo");
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the demo wrote\n{}\n----", self.told());
        }
        // It may have ended already.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}
