//! A second process that runs a test's other side and answers line by line.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The other process of a test: this program again, running the same test.
pub struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts `test` in another process, which finds `what` with [`role`](super::role) and calls
    /// [`serve`].
    pub fn start(test: &str, what: &str) -> Peer {
        Peer::start_with(test, what, |command| command)
    }

    /// [`start`](Peer::start), with more said about the process.
    pub fn start_with(
        test: &str,
        what: &str,
        more: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Peer {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env("HSHM_TEST_ROLE", format!("{test}={what}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = more(&mut command).spawn().unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        Peer { child, input, output }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a request without waiting for the answer.
    #[track_caller]
    pub fn send(&mut self, request: &str) {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{request}").unwrap();
        input.flush().unwrap();
    }

    /// The next answer.
    #[track_caller]
    pub fn receive(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.output.read_line(&mut line).unwrap();
            assert_ne!(read, 0, "the other process has ended: {:?}", self.child.wait());
            // The test harness there prints lines of its own, also before an answer.
            if let Some(at) = line.find("answer: ") {
                return line[at + 8..].trim_end().to_owned();
            }
        }
    }

    #[track_caller]
    pub fn ask(&mut self, request: &str) -> String {
        self.send(request);
        self.receive()
    }

    /// Ends the other process, which must have found nothing wrong.
    #[track_caller]
    pub fn finish(mut self) {
        drop(self.input.take());
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.output, &mut rest).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success() && rest.contains("1 passed"), "{status}: {rest}");
    }

    /// Waits for the other process, which was told to end itself and must have found nothing wrong.
    #[track_caller]
    pub fn wait(mut self) {
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// In the other process: answers requests until there are no more.
pub fn serve(mut answer: impl FnMut(&[&str]) -> String) {
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        println!("answer: {}", answer(&words));
    }
}
