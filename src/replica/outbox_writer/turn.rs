//! One turn of the outbox's thread: a batch of requests, and the exchanges that were requested in it.
//!
//! The thread takes the parts of a turn one after the other and waits for each step of an exchange. A simulation takes
//! them one at a time, because other threads act between any two of them.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;

use gravwell_protocol::fatal::Fatal;
use gravwell_protocol::outbox::Outbox;

use super::batch::Batch;
use super::{OutboxWriter, Request, Step, Successor};

/// The rest of a turn.
pub(crate) struct Turn {
    part: Part,
    /// Exchanges that are taken after the batch. While there is one, nothing else is accepted.
    exchanges: VecDeque<Receiver<Step>>,
}

enum Part {
    /// The batch was checked.
    Staged(Batch),
    /// The batch is durable, and visible to nobody.
    Written(Batch),
    /// The batch is done. This outbox is in the journal, and the present one in memory.
    Exchanging(Option<Outbox>),
}

/// A message, or none, on the channel of an exchange.
pub(crate) enum Heard {
    Step(Step),
    /// There will be no more steps.
    Ended,
    /// There is no step yet.
    #[cfg(any(test, feature = "testing"))]
    Nothing,
}

impl Turn {
    /// Returns whether it waits for the step of an exchange.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.part, Part::Exchanging(_)) && !self.exchanges.is_empty()
    }

    /// Returns whether the journal has an outbox that is not the one in memory.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn is_prepared(&self) -> bool {
        matches!(self.part, Part::Exchanging(Some(_)))
    }
}

impl OutboxWriter {
    /// Begins a turn: checks requests.
    pub(crate) fn begin(&mut self, requests: Vec<Request>) -> Turn {
        let (mut exchanges, mut others) = (VecDeque::new(), Vec::new());
        for request in requests {
            match request {
                Request::Exchange(steps) => exchanges.push_back(steps),
                request => others.push(request),
            }
        }
        Turn { part: Part::Staged(self.stage_batch(others)), exchanges }
    }

    /// Takes the next part of a turn, which may need a step of an exchange from `hear`. Returns the rest, if any.
    pub(crate) fn advance(
        &mut self,
        turn: Turn,
        hear: impl FnOnce(&Receiver<Step>) -> Heard,
    ) -> Result<Option<Turn>, Fatal> {
        let Turn { part, mut exchanges } = turn;
        let part = match part {
            Part::Staged(batch) => self.write_batch(batch)?.map_or(Part::Exchanging(None), Part::Written),
            Part::Written(batch) => {
                self.publish(batch);
                Part::Exchanging(None)
            }
            Part::Exchanging(prepared) => {
                let heard = exchanges.front().map_or(Heard::Ended, hear);
                let (prepared, is_over) = self.exchange(prepared, heard)?;
                if is_over {
                    exchanges.pop_front();
                }
                Part::Exchanging(prepared)
            }
        };
        let is_over = matches!(part, Part::Exchanging(_)) && exchanges.is_empty();
        Ok((!is_over).then_some(Turn { part, exchanges }))
    }

    /// Takes a step of an exchange. Returns the outbox that is prepared, and whether the exchange is over.
    fn exchange(&mut self, prepared: Option<Outbox>, heard: Heard) -> Result<(Option<Outbox>, bool), Fatal> {
        match heard {
            Heard::Step(Step::Prepare(successor, reply)) => {
                let (prepared, written) = match self.prepare_successor(successor)? {
                    Ok(outbox) => (Some(outbox), Ok(())),
                    Err(error) => (None, Err(error)),
                };
                let _ = reply.send(written);
                Ok((prepared, false))
            }
            Heard::Step(Step::Install(shared_to, reply)) => {
                if let Some(outbox) = prepared {
                    self.install(outbox, shared_to)?;
                }
                let _ = reply.send(());
                Ok((None, true))
            }
            Heard::Ended => self.take_back().map(|()| (None, true)),
            #[cfg(any(test, feature = "testing"))]
            Heard::Nothing => Ok((prepared, false)),
        }
    }

    fn prepare_successor(&mut self, successor: Successor) -> Result<Result<Outbox, String>, Fatal> {
        let outbox = match successor() {
            Ok(outbox) => outbox,
            Err(error) => return Ok(Err(error)),
        };
        Ok(self.prepare(&outbox)?.map(|()| outbox))
    }
}
