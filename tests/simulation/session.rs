//! Connections of replicas: the session machine of the product, driven by simulated time and messages.

use std::collections::VecDeque;
use std::time::Duration;

use gravwell_model::codec::message::{self, Hello, Kind, VERSION_MAX, VERSION_MIN, Welcome};
use gravwell_model::{Seq, Verdict};
use gravwell_protocol::push::Pusher;
use gravwell_protocol::session::client::{ClientSession, Effect, End, Event, PushId, Source};
use gravwell_protocol::session::is_redacted;
use gravwell_replica::resync::Loading;
use gravwell_state::StateStore;
use gravwell_transport::trust::Role;

use super::network::{ConnId, IDLE, MS, Message, SECOND, Time};
use super::oracle::{Checked, broken};
use super::replica::{Fetching, Link, Running, ToApply};
use super::world::{self, Truth, World};

/// Interval of progress reports that replicas are configured with.
const HEARTBEAT_MS: u64 = 500;

impl World {
    fn session_of(&mut self, number: usize, id: ConnId) -> Option<&mut Running> {
        let running = self.replicas[number].running.as_mut()?;
        if running.link.as_ref().is_some_and(|link| link.id == id) { Some(running) } else { None }
    }

    fn link(&mut self, number: usize, id: ConnId) -> Option<&mut Link> {
        self.session_of(number, id)?.link.as_mut()
    }

    /// Starts the session of a new connection.
    pub fn start_session(&mut self, number: usize) -> Checked {
        let (id, since) = (self.new_conn(number), self.now);
        let Some(running) = &mut self.replicas[number].running else { return Ok(()) };
        let position = running.stepped.claimed();
        let hello = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            software: "simulated".into(),
            position,
            external_addr: None,
        };
        let needs_snapshot = running.reconnects.needs_snapshot();
        let session = ClientSession::new(Duration::from_micros(since), &hello, needs_snapshot, HEARTBEAT_MS);
        running.link = Some(Link {
            id,
            since,
            greeted: position,
            session,
            control: VecDeque::new(),
            tail: VecDeque::new(),
            reads_control: false,
            reads_tail: false,
            completions: VecDeque::new(),
            timer: None,
            awaits: None,
            fetching: None,
            fetched: None,
            is_redacted: false,
            rogue: Pusher::default(),
        });
        self.carry_out_all(number, id)
    }

    /// Passes an event to the session of a connection, if the replica still has it.
    pub fn session_event(&mut self, number: usize, id: ConnId, event: Event) -> Checked {
        self.complete(number, id, event);
        self.carry_out_all(number, id)
    }

    fn complete(&mut self, number: usize, id: ConnId, event: Event) {
        let now = Duration::from_micros(self.now);
        if let Some(link) = self.link(number, id) {
            link.session.handle_event(now, event);
        }
    }

    /// Shows the claimed position as if the datastore had signed it. The connection is kept until it has arrived.
    fn show_proof(&mut self, number: usize, id: ConnId) {
        if let Some(mine) = self.link(number, id).and_then(|link| link.greeted) {
            self.send(id, Message::Report(Kind::Proof, message::encode_body(&mine).into()));
        }
        self.complete_within(SECOND, number, id, Event::ProofShown);
    }

    /// Completes an effect after some time.
    fn complete_later(&mut self, number: usize, id: ConnId, event: Event) {
        let wait = self.draw(5 * MS);
        self.complete_within(wait, number, id, event);
    }

    fn complete_within(&mut self, wait: Time, number: usize, id: ConnId, event: Event) {
        if let Some(link) = self.link(number, id) {
            link.completions.push_back(event);
            self.after(wait, world::Event::SessionCompletion(number, id));
        }
    }

    pub fn session_completion(&mut self, number: usize, id: ConnId) -> Checked {
        let event = self.link(number, id).and_then(|link| link.completions.pop_front());
        event.map_or(Ok(()), |event| self.session_event(number, id, event))
    }

    pub fn session_timeout(&mut self, number: usize, id: ConnId) -> Checked {
        let now = self.now;
        let Some(link) = self.link(number, id) else { return Ok(()) };
        link.timer = link.timer.filter(|at| *at > now);
        link.session.handle_timeout(Duration::from_micros(now));
        self.carry_out_all(number, id)
    }

    /// Informs the session that the outbox or the state may have changed.
    pub fn session_poke(&mut self, number: usize) -> Checked {
        let Some(running) = &mut self.replicas[number].running else { return Ok(()) };
        let wants_resync = running.stepped.wants_resync();
        let Some(link) = &mut running.link else { return Ok(()) };
        let id = link.id;
        if link.awaits.is_some_and(|seq| running.stepped.has_applied(seq)) {
            link.awaits = None;
            self.session_event(number, id, Event::Reached)?;
        }
        self.session_event(number, id, Event::OutboxChanged { wants_resync })
    }

    /// Passes waiting messages to the session and carries out its effects until there are no more of both.
    fn carry_out_all(&mut self, number: usize, id: ConnId) -> Checked {
        while let Some(link) = self.link(number, id) {
            let next = |reads: &mut bool, messages: &mut VecDeque<_>| {
                let message = if *reads { messages.pop_front() } else { None };
                *reads &= message.is_none();
                message
            };
            if let Some(effect) = link.session.poll_effect() {
                self.carry_out(number, id, effect)?;
            } else if let Some((kind, body)) = next(&mut link.reads_control, &mut link.control) {
                self.complete(number, id, Event::Control(kind, body));
            } else if let Some((kind, body)) = next(&mut link.reads_tail, &mut link.tail) {
                self.complete(number, id, Event::Tail(kind, body));
            } else {
                break;
            }
        }
        self.set_timer(number, id);
        self.push(number, id)
    }

    fn set_timer(&mut self, number: usize, id: ConnId) {
        let now = self.now;
        let Some(link) = self.link(number, id) else { return };
        let Some(due) = link.session.poll_timeout() else { return };
        let due = u64::try_from(due.as_micros()).unwrap_or(u64::MAX).max(now);
        if link.timer.is_none_or(|at| due < at) {
            link.timer = Some(due);
            self.after(due - now, world::Event::SessionTimeout(number, id));
        }
    }

    fn carry_out(&mut self, number: usize, id: ConnId, effect: Effect) -> Checked {
        self.observe(number, id, &effect)?;
        let Some(running) = self.session_of(number, id) else { return Ok(()) };
        let effect = match running.stepped.carry_out(effect) {
            Ok(event) => {
                let terms = running.stepped.terms();
                self.replicas[number].states.keep_terms(terms);
                event.into_iter().for_each(|event| self.complete(number, id, event));
                return Ok(());
            }
            Err(effect) => effect,
        };
        match effect {
            Effect::Send(kind, body) => self.send(id, Message::Report(kind, body)),
            Effect::Read(source) => {
                if let Some(link) = self.link(number, id) {
                    match source {
                        Source::Control => link.reads_control = true,
                        Source::Tail => link.reads_tail = true,
                    }
                }
            }
            Effect::LiftRefusal => self.complete_later(number, id, Event::Lifted),
            // The causes of generations are not part of this simulation, so an operator has to decide.
            Effect::AskReason(_) => self.complete_later(number, id, Event::Reason(None)),
            Effect::ShowProof => self.show_proof(number, id),
            Effect::Donate => self.complete_later(number, id, Event::Donated),
            Effect::LearnGenerations(_) => self.complete_later(number, id, Event::GenerationsLearned),
            Effect::FetchState(welcome) => {
                if let Some(link) = self.link(number, id) {
                    link.is_redacted = is_redacted(&welcome);
                }
                self.send(id, Message::WantSnapshot);
            }
            Effect::Swap => self.swap(number, id)?,
            Effect::Leave(leave) if self.has_all_of(number, id) => {
                broken!("web{number} leaves its history, which the datastore has: {leave:?}");
            }
            Effect::Leave(_) => self.complete(number, id, Event::Failed("histories are not left here".into())),
            Effect::Decode(mut intake, frames) => match intake.handle_frames(frames) {
                Ok(runs) => self.complete(number, id, Event::Decoded(intake, runs)),
                Err(error) if self.truth == Truth::Genuine => {
                    broken!("web{number} received an inconsistent tail: {error}")
                }
                Err(error) => self.complete(number, id, Event::BadFrames(error)),
            },
            Effect::Apply(run) => {
                if let Some(running) = self.session_of(number, id) {
                    running.stepped.compare_arrived(&run.entries);
                }
                self.enqueue(number, ToApply::Run(run));
                self.complete(number, id, Event::Queued);
            }
            Effect::CheckBookmark(bookmark) => {
                self.enqueue(number, ToApply::Bookmark(bookmark));
                self.complete(number, id, Event::Queued);
            }
            Effect::Report => self.report_progress(number, id),
            Effect::AwaitApplied(head) => {
                let Some(running) = self.session_of(number, id) else { return Ok(()) };
                let is_reached = running.stepped.has_applied(head);
                if let Some(link) = running.link.as_mut().filter(|_| !is_reached) {
                    link.awaits = Some(head);
                }
                if is_reached {
                    self.complete(number, id, Event::Reached);
                }
            }
            Effect::ClosePush(_) => self.note(|| format!("web{number} pauses")),
            Effect::Close(end) => self.hang_up(number, id, end)?,
            // Registers, addresses and signed positions are not part of this simulation.
            _ => {}
        }
        Ok(())
    }

    /// Checks what the session decides against the true identity of the datastore.
    fn observe(&mut self, number: usize, id: ConnId, effect: &Effect) -> Checked {
        match effect {
            Effect::Welcomed(welcome, verdict) => {
                let mine = self.link(number, id).and_then(|link| link.greeted);
                self.note(|| format!("web{number} at {:?} is welcomed: {verdict}", mine.map(|mine| mine.seq)));
                if let Some(running) = self.session_of(number, id) {
                    running.welcome = Some(std::sync::Arc::clone(welcome));
                }
                Ok(())
            }
            Effect::ReportVerdict(verdict) => self.check_decision(number, id, Some(*verdict)),
            Effect::Accept(welcome, _) => {
                self.check_decision(number, id, None)?;
                if let Some(running) = self.session_of(number, id) {
                    running.knows_role |= welcome.role == Role::Reader.to_string();
                }
                Ok(())
            }
            Effect::Connected(welcome, _) => self.check_redacted(number, welcome),
            _ => Ok(()),
        }
    }

    fn check_redacted(&self, number: usize, welcome: &Welcome) -> Checked {
        let Some(running) = &self.replicas[number].running else { return Ok(()) };
        let holds_all = running.stepped.state().meta().is_some_and(|meta| !meta.is_redacted);
        if is_redacted(welcome) && holds_all {
            broken!("web{number} is a reader that follows, and its state has values withheld from readers");
        }
        Ok(())
    }

    fn check_decision(&mut self, number: usize, id: ConnId, refused: Option<Verdict>) -> Checked {
        let is_tampered = self.replicas[number].tampered;
        let Some(running) = self.session_of(number, id) else { return Ok(()) };
        let (Some(mine), Some(welcome)) =
            (running.link.as_ref().and_then(|link| link.greeted), running.welcome.clone())
        else {
            return Ok(());
        };
        if is_tampered {
            return Ok(());
        }
        let truth = self.conns.get(&id).and_then(|conn| conn.welcomed_by).unwrap_or(self.truth);
        match &self.fence {
            Some(fence) if fence.beyond.contains(&number) => fence.check_refused(number, refused),
            _ => self.check_verdict(truth, number, mine.seq, &welcome, refused),
        }
    }

    /// Checks the verdict of a replica against the true identity of the datastore.
    fn check_verdict(
        &self,
        truth: Truth,
        number: usize,
        seq: Seq,
        welcome: &Welcome,
        found: Option<Verdict>,
    ) -> Checked {
        let expected = match truth {
            Truth::Genuine => None,
            Truth::Wiped if welcome.head == Seq::ZERO => Some(Verdict::Empty),
            Truth::Wiped => Some(Verdict::Foreign),
            Truth::OldCopy { head } if seq <= head => None,
            Truth::OldCopy { .. } if welcome.head == Seq::ZERO => Some(Verdict::Empty),
            Truth::OldCopy { .. } if seq > welcome.head => Some(Verdict::Ahead),
            Truth::OldCopy { .. } if seq < welcome.horizon => return Ok(()),
            Truth::OldCopy { .. } => Some(Verdict::Forked),
        };
        if expected != found && (seq > Seq::ZERO || found.is_some()) {
            broken!(
                "web{number} at {seq}, datastore {:?} at {}: expected {expected:?}, got {found:?}",
                truth,
                welcome.head
            );
        }
        Ok(())
    }

    fn report_progress(&mut self, number: usize, id: ConnId) {
        let Some(running) = self.session_of(number, id) else { return };
        let (progress, reached) = (running.stepped.progress(), running.stepped.reached());
        self.replicas[number].states.keep_reached(reached);
        let body = message::encode_body(&progress);
        self.send(id, Message::Report(Kind::Progress, body.into()));
        self.complete(number, id, Event::Reported);
    }

    /// Sends the transactions that the session allows. A misbehaving reader pushes others.
    fn push(&mut self, number: usize, id: ConnId) -> Checked {
        let is_rogue = self.replicas[number].role == Role::Reader && self.chance(5);
        let Some(running) = self.session_of(number, id) else { return Ok(()) };
        let Some(link) = &mut running.link else { return Ok(()) };
        let mut pushes = Vec::new();
        while pushes.len() < 16
            && let Some((push, body)) = running.stepped.next_push(&mut link.session)
        {
            pushes.push(Message::Push(push.stream, body));
        }
        if is_rogue
            && link.session.is_following()
            && let Some(body) = running.stepped.next_rogue_push(&mut link.rogue)
        {
            pushes.push(Message::Push(PushId(u64::MAX), body));
        }
        pushes.into_iter().for_each(|push| self.send(id, push));
        Ok(())
    }

    /// Handles a part of a snapshot.
    pub fn snapshot_part(&mut self, number: usize, id: ConnId, message: Message) -> Checked {
        if let Message::Begin(begin) = &message {
            let (path, disk) = self.replicas[number].states.add();
            let Some(link) = self.link(number, id) else { return Ok(()) };
            let loading = StateStore::with_engine(Box::new(disk))
                .map_err(|error| error.to_string())
                .and_then(|store| Loading::begin(&store, begin, link.is_redacted));
            return match loading {
                Ok(loading) => {
                    link.fetching = Some(Fetching { loading, path });
                    Ok(())
                }
                Err(error) => self.session_event(number, id, Event::Failed(error)),
            };
        }
        let Some(link) = self.link(number, id) else { return Ok(()) };
        let Some(Fetching { mut loading, path }) = link.fetching.take() else { return Ok(()) };
        let taken = match message {
            Message::Deletions(deletions) => loading.deletions(*deletions),
            Message::Rows(rows) => loading.rows(rows),
            Message::End(end) => {
                let state = match loading.finish(&end) {
                    Ok(state) => state,
                    Err(error) => broken!("web{number}: a snapshot was incomplete: {error}"),
                };
                return self.fetched(number, id, state, path);
            }
            _ => Ok(()),
        };
        link.fetching = Some(Fetching { loading, path });
        taken.map_or_else(|error| self.session_event(number, id, Event::Failed(error)), Ok)
    }

    fn fetched(&mut self, number: usize, id: ConnId, state: StateStore, path: std::path::PathBuf) -> Checked {
        let Some(running) = self.session_of(number, id) else { return Ok(()) };
        if let Some(link) = &mut running.link {
            link.fetched = Some((state, path));
        }
        // Transactions that a lost state may have resolved are pushed again instead of archived.
        self.session_event(number, id, Event::Fetched { lacks_lost: false })
    }

    /// Makes the fetched state the current one.
    fn swap(&mut self, number: usize, id: ConnId) -> Checked {
        let Some(running) = self.session_of(number, id) else { return Ok(()) };
        let Some((state, path)) = running.link.as_mut().and_then(|link| link.fetched.take()) else { return Ok(()) };
        let before = running.stepped.position().map(|position| position.seq);
        let forks = running.stepped.forks();
        let swapped = running.stepped.swap(state, path.clone());
        let is_fork = running.stepped.forks() > forks;
        let after = running.stepped.position().map(|position| position.seq);
        self.check_swap(id, number, before, is_fork, matches!(swapped, Ok(Ok(()))))?;
        match swapped {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.replicas[number].states.discard(&path);
                let event = if is_fork { Event::SwapForked } else { Event::Failed(error.to_string()) };
                self.complete(number, id, event);
                return Ok(());
            }
            Err(failure) => {
                self.fatal(number, Err(failure));
                return Ok(());
            }
        }
        self.note(|| format!("web{number} installed a snapshot: {before:?} to {after:?}"));
        if after < before {
            broken!("web{number} went back from {before:?} to {after:?} by a snapshot");
        }
        self.note_swapped(number, after);
        self.complete(number, id, Event::Swapped);
        self.check_receipts(number)?;
        self.check_replica(number)
    }

    fn note_swapped(&mut self, number: usize, after: Option<Seq>) {
        let node = &mut self.replicas[number];
        (node.tampered, node.damaged) = (false, false);
        if let Some(seq) = after {
            self.oracle.durable(number, seq);
            self.persisted[number] = Some(seq);
            self.replicas[number].shown = seq;
            self.replicas[number].came_to = self.replicas[number].came_to.max(seq);
            // The same rule by which the simulated datastore acts as an earlier version.
            let is_earlier = seq.0.is_multiple_of(3);
            self.replicas[number].states.note_filled(if is_earlier { seq } else { Seq::ZERO });
        }
    }

    /// Returns whether the datastore of a connection has the whole history of a replica.
    fn has_all_of(&self, number: usize, id: ConnId) -> bool {
        let node = &self.replicas[number];
        let truth = self.conns.get(&id).and_then(|conn| conn.welcomed_by).unwrap_or(self.truth);
        // Unreadable rows prove nothing.
        truth == Truth::Genuine && self.fence.is_none() && !node.damaged && !node.tampered
    }

    /// Ends a connection on which nothing happens: if the datastore has forgotten it, its silence ends it.
    pub fn check_silence(&mut self, number: usize) -> Checked {
        let now = self.now;
        let silent = |link: &&Link| !link.session.is_following() && now - link.since > IDLE;
        let running = self.replicas[number].running.as_ref();
        let id = running.and_then(|running| running.link.as_ref()).filter(silent).map(|link| link.id);
        id.map_or(Ok(()), |id| self.client_broken(id, "silence"))
    }

    /// Closes the connection on behalf of the replica.
    fn hang_up(&mut self, number: usize, id: ConnId, end: End) -> Checked {
        let wait = self.draw(50 * MS);
        self.after(wait, world::Event::ServerBroken(id));
        let why = end.to_string();
        self.disconnected(number, Some(&end), &why);
        Ok(())
    }
}
