//! `join`, `watch`, `agent`: nodes that say what happens to them.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Read},
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use clap::Args;
use membership::{
    Class, Delivered, Deliveries, Event, Events, JoinError, Membership, Node, NodeId, Token, ViewId, What,
    clock::now_ns,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{
    Failure, Outcome, complain, events, exit,
    flags::NodeFlags,
    node::{LEAVE_LIMIT, Stops, start},
};

/// A node that is a member of GROUP; prints events, reads commands from standard input.
///
/// The events are `view`, `message`, `leading` and `not_leading`; on TERM it leaves. A view is printed once it is installed:
/// who goes from one to the next together has printed the same messages in between.
///
/// Commands, one a line: `send TEXT` (to all members, in one order for all), `send-safe TEXT` (and only once all members hold
/// it), `send-fifo TEXT` (in the order of its sender), `step-down`, `leave`. They are read as fast as others take them. The end of the input means leave, once all that
/// was sent was delivered here; the exit code is 1 if something of it could not be sent. A TEXT may be any bytes up to 64 MiB; what
/// is no UTF-8 is printed as well as it can be.
///
/// Example, three times: phalanx join g --rendezvous file:/tmp/rdv --json
#[derive(Args)]
pub(crate) struct Join {
    /// The group.
    group: String,
    /// End with code 4 when the cluster removes this node, instead of joining anew.
    #[arg(long)]
    once: bool,
    /// Do not read commands from standard input; its end would mean leave.
    #[arg(long)]
    no_stdin: bool,
    /// Be a member with views and leaders only: no messages are sent or printed.
    #[arg(long)]
    plain: bool,
    /// A TOML file with these settings.
    #[arg(long, env = "PHALANX_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    node: NodeFlags,
}

/// Prints the views of a group as an observer: what it says is a hint, never authority.
#[derive(Args)]
pub(crate) struct Watch {
    /// The group.
    group: String,
    /// End with code 4 when the cluster removes this node, instead of joining anew.
    #[arg(long)]
    once: bool,
    /// A TOML file with these settings.
    #[arg(long, env = "PHALANX_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    node: NodeFlags,
}

/// A plain node: it sits in the core if needed and serves the admin API. Example: phalanx agent --admin 127.0.0.1:7070
#[derive(Args)]
pub(crate) struct Agent {
    /// A TOML file with these settings.
    #[arg(long, env = "PHALANX_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    node: NodeFlags,
}

impl Join {
    pub(crate) fn configure(&mut self) -> Result<Option<tracing::Level>, Failure> {
        self.node.complete(self.config.as_deref())
    }

    pub(crate) async fn run(self, json: bool) -> Outcome {
        let stops = Stops::new()?;
        let started = stops.unless(start(self.node, true, !self.once)).await?;
        let Some(node) = started else { return Ok(0) };
        let usage = |e: membership::GroupError| Failure::usage(e.to_string());
        let (membership, deliveries) = if self.plain {
            (node.join(&self.group, None).await.map_err(usage)?, None)
        } else {
            let (membership, deliveries) = node.join_multicast(&self.group, None).await.map_err(usage)?;
            (membership, Some(deliveries))
        };
        let lines = if self.no_stdin { None } else { Some(commands()) };
        let events = membership.events();
        let mut follower = Follower::new(node, self.once, json, stops);
        follower.multicast = membership.is_multicast();
        follower.deliveries = deliveries;
        follower.speaker = Some(Speaker::new(membership));
        follower.follow(events, lines).await
    }
}

impl Watch {
    pub(crate) fn configure(&mut self) -> Result<Option<tracing::Level>, Failure> {
        self.node.complete(self.config.as_deref())
    }

    pub(crate) async fn run(self, json: bool) -> Outcome {
        let stops = Stops::new()?;
        let started = stops.unless(start(self.node, false, !self.once)).await?;
        let Some(node) = started else { return Ok(0) };
        let observer = node.observe(&self.group).await.map_err(|e| Failure::usage(e.to_string()))?;
        let events = observer.events();
        Follower::new(node, self.once, json, stops).follow(events, None).await
    }
}

impl Agent {
    pub(crate) fn configure(&mut self) -> Result<Option<tracing::Level>, Failure> {
        self.node.complete(self.config.as_deref())
    }

    pub(crate) async fn run(self, json: bool) -> Outcome {
        let stops = Stops::new()?;
        let started = stops.unless(start(self.node, true, true)).await?;
        let Some(node) = started else { return Ok(0) };
        let events = node.events();
        Follower::new(node, false, json, stops).follow(events, None).await
    }
}

/// Longer lines are cut, and what they say is still too long to be sent then.
const LONGEST: u64 = (64 << 20) + 1024;

/// Lines of standard input, read by a thread; at most a few wait.
fn commands() -> mpsc::Receiver<Vec<u8>> {
    let (to, lines) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        loop {
            let line = match read_line(&mut input, LONGEST) {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(error) => {
                    complain(format_args!("standard input: {error}: this counts as its end"));
                    break;
                }
            };
            if to.blocking_send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// The next line, which need not be text, cut after so many bytes; `None` at the end.
fn read_line(input: &mut impl BufRead, longest: u64) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let read = input.by_ref().take(longest).read_until(b'\n', &mut line)?;
    if read as u64 == longest && line.last() != Some(&b'\n') {
        input.skip_until(b'\n')?;
    }
    Ok((read > 0).then_some(line))
}

/// The command, and what it is to say.
fn parse(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().rposition(|byte| !b"\r\n".contains(byte)).map_or(0, |last| last + 1);
    let line = line[..end].trim_ascii_start();
    match line.iter().position(|byte| *byte == b' ') {
        Some(at) => (&line[..at], &line[at + 1..]),
        None => (line.trim_ascii_end(), b""),
    }
}

/// The next line, once there is room for what it says.
async fn next_line(
    lines: &mut Option<mpsc::Receiver<Vec<u8>>>,
    speaker: Option<&Speaker>,
) -> Option<Vec<u8>> {
    let Some(lines) = lines else { return std::future::pending().await };
    if let Some(speaker) = speaker {
        // The room stays, for nobody else takes any. An error says that nothing is sent any more, which is said of each line.
        let _room = speaker.messages.reserve().await;
    }
    lines.recv().await
}

/// Waits until nothing that was said can be delivered any more.
async fn all_heard(speaker: Option<&Speaker>) {
    let Some(speaker) = speaker else { return std::future::pending().await };
    if speaker.early && speaker.said > 0 {
        return std::future::pending().await;
    }
    let mut fate = speaker.fate.subscribe();
    // An error would say that the sender is gone, which the speaker holds.
    let _over = fate.wait_for(|fate| fate.over >= speaker.said).await;
}

async fn next_delivered(
    ahead: &mut Option<Delivered>,
    deliveries: &mut Option<Deliveries>,
) -> Option<Delivered> {
    if ahead.is_some() {
        return ahead.take();
    }
    match deliveries {
        Some(deliveries) => deliveries.next().await,
        None => std::future::pending().await,
    }
}

/// Sends one message after the other, without holding up what is printed.
struct Speaker {
    membership: Membership,
    messages: mpsc::Sender<(Class, Vec<u8>)>,
    task: tokio::task::JoinHandle<()>,
    /// How many messages were said.
    said: u64,
    /// There is no view yet in which they can be sent, though there will be one.
    early: bool,
    fate: watch::Sender<Fate>,
}

/// What became of the messages.
#[derive(Default)]
struct Fate {
    /// So many will not be delivered any more: they were, or cannot be.
    over: u64,
    /// Not all were sent.
    lost: bool,
}

impl Speaker {
    fn new(membership: Membership) -> Self {
        let (messages, mut waiting) = mpsc::channel::<(Class, Vec<u8>)>(4);
        let fate = watch::Sender::new(Fate::default());
        let (group, refused) = (membership.clone(), fate.clone());
        let task = tokio::spawn(async move {
            while let Some((class, text)) = waiting.recv().await {
                if let Err(error) = group.multicast(class, text).await {
                    complain(format_args!("not sent: {error}"));
                    refused.send_modify(|fate| (fate.over, fate.lost) = (fate.over + 1, true));
                }
            }
        });
        let early = membership.is_multicast();
        Self { membership, messages, task, said: 0, early, fate }
    }

    /// An own message was delivered.
    fn hear(&self) {
        self.fate.send_modify(|fate| fate.over += 1);
    }

    /// The node is another one from now on. What the last one had not sent to the end may be lost; the next view gets the rest.
    fn give_up(&mut self) {
        self.early = self.membership.is_multicast();
        self.fate.send_modify(|fate| {
            if fate.over < self.said {
                complain("what was sent last may be lost, for the node was removed");
                (fate.over, fate.lost) = (self.said, true);
            }
        });
    }

    /// Leaves the cluster after everything was said.
    async fn leave(self, node: Node) {
        drop(self.messages);
        // Where others take nothing, the rest is lost with this node.
        if timeout(LEAVE_LIMIT / 2, self.task).await.is_err() {
            complain("leaving, though not everything could be sent");
        }
        node.leave().await;
    }
}

/// Prints what happens to a node.
struct Follower {
    node: Node,
    json: bool,
    once: bool,
    /// Views are printed when they are installed.
    multicast: bool,
    deliveries: Option<Deliveries>,
    /// The first view of the next incarnation, of which was not told yet.
    ahead: Option<Delivered>,
    /// The last view that was printed.
    shown: ViewId,
    /// Gone once the node leaves.
    speaker: Option<Speaker>,
    /// The incarnation of which was told last.
    id: NodeId,
    /// It was told of a view of the group, and not yet that it is out.
    inside: bool,
    /// The token under which the node was said to lead.
    led: Option<Token>,
    /// How members were shown last.
    names: BTreeMap<NodeId, Arc<str>>,
    stops: Stops,
    /// It leaves, and waits until then for a reader that stalls.
    ends: Option<Instant>,
}

impl Follower {
    fn new(node: Node, once: bool, json: bool, stops: Stops) -> Self {
        Self {
            id: node.id(),
            node,
            json,
            once,
            multicast: false,
            deliveries: None,
            ahead: None,
            shown: ViewId::NONE,
            speaker: None,
            inside: false,
            led: None,
            names: BTreeMap::new(),
            stops,
            ends: None,
        }
    }

    /// Prints events until the node has stopped: because it was told to, or (with `once`) because it was removed.
    async fn follow(mut self, mut events: Events, mut lines: Option<mpsc::Receiver<Vec<u8>>>) -> Outcome {
        let (mut joining, mut ended, mut code) = (true, false, 0);
        let node = self.node.clone();
        let mut joined = pin!(node.joined());
        loop {
            tokio::select! {
                biased;
                () = self.stops.told(), if self.ends.is_none() => self.leave(),
                // Nobody reads any more.
                () = events::gone(), if self.ends.is_none() => self.leave(),
                event = events.next() => {
                    let Some(event) = event else { return Ok(code) };
                    if !self.on_event(&event).await {
                        self.leave();
                    }
                    if was_removed(&event) {
                        if let Some(speaker) = &mut self.speaker {
                            speaker.give_up();
                        }
                        if self.once {
                            code = exit::REMOVED;
                        }
                    }
                }
                delivered = next_delivered(&mut self.ahead, &mut self.deliveries) => match delivered {
                    None => self.deliveries = None,
                    Some(delivered) => {
                        // Whose lease has run out says so before anything else.
                        while self.led.is_some() && now_ns() >= self.node.status().lease_until_ns {
                            let Some(event) = events.next().await else { return Ok(code) };
                            self.on_event(&event).await;
                        }
                        if !self.on_delivered(&delivered).await {
                            self.leave();
                        }
                    }
                },
                outcome = &mut joined, if joining && self.ends.is_none() => {
                    joining = false;
                    if let Err(JoinError::Timeout { .. }) = &outcome {
                        let text = outcome.err().map(|e| e.to_string()).unwrap_or_default();
                        self.node.leave().await;
                        return Err(Failure::new(exit::NOT_JOINED, text));
                    }
                }
                () = all_heard(self.speaker.as_ref()), if ended && self.ends.is_none() => {
                    if self.speaker.as_ref().is_some_and(|speaker| speaker.fate.borrow().lost) {
                        code = exit::FAILED;
                    }
                    self.leave();
                }
                line = next_line(&mut lines, self.speaker.as_ref()), if self.ends.is_none() => match line {
                    Some(line) if self.on_line(&line) => self.leave(),
                    Some(_) => {}
                    // What was said before the first view is sent in it, and so on: it has no hurry.
                    None => (lines, ended) = (None, true),
                }
            }
        }
    }

    /// Has a line printed, as soon as there is room. False once nobody reads. While a reader stalls this waits, and heeds signals.
    async fn say(&mut self, text: String) -> bool {
        let mut said = pin!(events::say(text));
        loop {
            let ends = self.ends;
            let late = async {
                match ends {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                said = &mut said => return said,
                () = self.stops.told(), if self.ends.is_none() => self.leave(),
                () = late => {
                    events::lose("nobody reads it: what was printed last is lost");
                    return true;
                }
            }
        }
    }

    fn leave(&mut self) {
        if self.ends.is_none() {
            self.ends = Some(Instant::now() + LEAVE_LIMIT / 2);
            let node = self.node.clone();
            match self.speaker.take() {
                Some(speaker) => tokio::spawn(speaker.leave(node)),
                None => tokio::spawn(async move { node.leave().await }),
            };
        }
    }

    /// A command. True if that is to leave.
    fn on_line(&mut self, line: &[u8]) -> bool {
        let (word, text) = parse(line);
        let class = match word {
            b"" => return false,
            b"send" => Class::Ordered,
            b"send-safe" => Class::Safe,
            b"send-fifo" => Class::Fifo,
            b"leave" => return true,
            b"step-down" => {
                if let Some(membership) = self.speaker.as_ref().map(|s| s.membership.clone()) {
                    tokio::spawn(async move { membership.step_down().await });
                }
                return false;
            }
            other => {
                let other = other[..other.len().min(40)].escape_ascii();
                complain(format_args!(
                    "`{other}` is no command here: give send TEXT, send-safe TEXT, send-fifo TEXT, step-down or leave"
                ));
                return false;
            }
        };
        if let Some(speaker) = &mut self.speaker {
            match speaker.messages.try_send((class, text.to_vec())) {
                Ok(()) => speaker.said += 1,
                Err(_) => complain("not sent: the node does not send any more"),
            }
        }
        false
    }

    /// Prints an event of the node. False once nobody reads.
    async fn on_event(&mut self, event: &Event) -> bool {
        match &event.what {
            // A view is printed when it is installed: see `on_delivered`.
            What::View(_) if self.multicast => return true,
            What::Leading { token, .. } => {
                // Its view, and what came before that; by now there may be a later view, before which it ceased to lead.
                while self.shown < token.view()
                    && let Some(delivered) = self.try_delivered()
                {
                    self.on_delivered(&delivered).await;
                }
                self.led = Some(*token);
            }
            What::NotLeading { .. } => self.led = None,
            // Ids of another lineage may be lower.
            What::Started { .. } => (self.id, self.shown) = (event.node, ViewId::NONE),
            _ if was_removed(event) => self.say_rest().await,
            _ => {}
        }
        match events::line_of(event, self.json) {
            Some(text) => self.say(text).await,
            None => true,
        }
    }

    fn try_delivered(&mut self) -> Option<Delivered> {
        self.ahead.take().or_else(|| self.deliveries.as_mut().and_then(Deliveries::try_next))
    }

    /// What was delivered to an incarnation is told before its end is. What was delivered to the next one already waits.
    async fn say_rest(&mut self) {
        let until = Instant::now() + REST_LIMIT;
        loop {
            let next = match &mut self.deliveries {
                Some(deliveries) if self.inside => timeout_at(until, deliveries.next()).await.ok().flatten(),
                _ => self.try_delivered(),
            };
            let Some(delivered) = next else { return };
            if matches!(&delivered, Delivered::View { view, .. } if view.rank_of(self.id).is_none()) {
                self.ahead = Some(delivered);
                return;
            }
            self.on_delivered(&delivered).await;
        }
    }

    /// Prints what the group delivers. False once nobody reads.
    async fn on_delivered(&mut self, delivered: &Delivered) -> bool {
        if let Delivered::Out { .. } = delivered {
            self.inside = false;
        }
        if let Delivered::View { view, .. } = delivered {
            self.inside = true;
            self.shown = view.id;
            self.names = view.members.iter().map(|m| (m.node, Arc::clone(&m.name))).collect();
            if let Some(speaker) = &mut self.speaker {
                speaker.early = false;
            }
        }
        let me = self.names.get(&self.id).cloned().unwrap_or_else(|| self.node.name().into());
        let group = self.speaker.as_ref().map(|s| s.membership.group().clone());
        let what = match delivered {
            Delivered::View { view, .. } => What::View(Arc::clone(view)),
            Delivered::Message(message) => {
                let from =
                    self.names.get(&message.from).cloned().unwrap_or_else(|| message.from.to_string().into());
                let own = message.from == self.id;
                let text = events::line_of_message(&me, group.as_ref(), &from, message, self.json);
                let said = self.say(text).await;
                if let Some(speaker) = self.speaker.as_ref().filter(|_| own) {
                    speaker.hear();
                }
                return said;
            }
            _ => return true,
        };
        let group = match &what {
            What::View(view) => Some(view.group.clone()),
            _ => group,
        };
        let event = Event { name: me, node: self.id, at_ns: now_ns(), group, what };
        match events::line_of(&event, self.json) {
            Some(text) => self.say(text).await,
            None => true,
        }
    }
}

fn was_removed(event: &Event) -> bool {
    matches!(event.what, What::Removed { .. } | What::Dissolved { .. } | What::StartOver { .. })
}

/// How long what was delivered last may take to be told before the end of an incarnation is.
const REST_LIMIT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_any_bytes_are_commands_and_the_length_of_a_line_is_bounded() {
        let mut input = &b"send a\xff b\r\n\n  leave \nsend 123456789\nstep-down"[..];
        let mut next = || read_line(&mut input, 12).expect("memory can be read");
        let lines: Vec<Vec<u8>> = std::iter::from_fn(&mut next).collect();
        let commands: Vec<(&[u8], &[u8])> = lines.iter().map(|line| parse(line)).collect();
        let expected: [(&[u8], &[u8]); 5] =
            [(b"send", b"a\xff b"), (b"", b""), (b"leave", b""), (b"send", b"1234567"), (b"step-down", b"")];
        assert_eq!(commands, expected);
    }
}
