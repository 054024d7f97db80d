//! Lists of objects that may be many and large. Objects are read one at a time and sent as they are read, so a list needs
//! only the memory of its keys. An object that was deleted, or is no longer visible, when its turn comes is omitted.

use std::io;
use std::ops::ControlFlow;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::admission;
use super::app::{App, AppRef};
use super::caller::Caller;
use super::error::ApiResult;
use super::scan_slots;
use gravwell_objects::{Record, Store, StoreError, Stored};
use gravwell_runtime::tasks::blocking;

/// Size up to which bytes are collected before they are sent. A shorter list is sent as a whole.
const PIECE_BYTES: usize = 256 << 10;

pub(super) struct List<T, W, S> {
    /// Returns whether an object is visible to a caller.
    pub wanted: W,
    /// Returns an object as JSON.
    pub shown: S,
    /// Prefix of the keys of the listed objects.
    pub prefix: String,
    /// Opening and closing bracket of the JSON.
    brackets: [u8; 2],
    pub of: std::marker::PhantomData<fn(T)>,
}

/// A list of which a part has been written.
struct Rest<T, W, S> {
    list: List<T, W, S>,
    app: AppRef,
    caller: Caller,
    keys: std::vec::IntoIter<String>,
    has_begun: bool,
    has_ended: bool,
}

impl<T, W, S> List<T, W, S>
where
    T: Stored + Send + 'static,
    W: Fn(&Caller, &T) -> bool + Send + 'static,
    S: Fn(&App, &Record<T>) -> serde_json::Result<Vec<u8>> + Send + 'static,
{
    pub(super) fn new(prefix: String, wanted: W, shown: S) -> List<T, W, S> {
        List { wanted, shown, prefix, brackets: *b"[]", of: std::marker::PhantomData }
    }

    /// Renders the list as one JSON object; each listed object is shown as a member, including its name.
    pub(super) fn into_object(self) -> List<T, W, S> {
        List { brackets: *b"{}", ..self }
    }

    /// Returns the keys of the visible objects, sorted by `order`.
    fn keys<O: Ord>(&self, store: &Store, caller: &Caller, order: impl Fn(&T) -> O) -> Result<Vec<String>, StoreError> {
        let mut chosen = Vec::new();
        blocking::run(|| {
            store.each::<T>(&self.prefix, |record| {
                if (self.wanted)(caller, &record.value) {
                    chosen.push((order(&record.value), record.value.key()));
                }
                ControlFlow::Continue(())
            })
        })?;
        chosen.sort();
        Ok(chosen.into_iter().map(|(_, key)| key).collect())
    }

    /// Responds with the list in this order.
    pub(super) async fn answer<O: Ord>(
        self,
        app: &AppRef,
        caller: &Caller,
        order: impl Fn(&T) -> O + Send,
    ) -> ApiResult<Response> {
        self.page(app, caller, order, 0, usize::MAX).await
    }

    /// Like [`List::answer`], for the objects from index `start` up to but excluding `end`.
    pub(super) async fn page<O: Ord>(
        self,
        app: &AppRef,
        caller: &Caller,
        order: impl Fn(&T) -> O + Send,
        start: usize,
        end: usize,
    ) -> ApiResult<Response> {
        let turn = scan_slots::turn(caller.uid()).await?;
        let mut keys = self.keys(&app.store, caller, order)?;
        drop(turn);
        keys.truncate(end);
        keys.drain(..start.min(keys.len()));
        let (app, caller) = (AppRef::clone(app), caller.clone());
        let mut rest = Rest { list: self, app, caller, keys: keys.into_iter(), has_begun: false, has_ended: false };
        let first = rest.piece()?;
        let json = [(header::CONTENT_TYPE, "application/json")];
        if rest.has_ended {
            return Ok((json, first).into_response());
        }
        let ended = admission::ended(&rest.app, &rest.caller);
        let pieces = futures_util::stream::unfold((Some(first), Some(rest)), |(first, rest)| async move {
            if first.is_some() {
                return first.map(|piece| (Ok(piece), (None, rest)));
            }
            let mut rest = rest.filter(|rest| !rest.has_ended)?;
            match rest.next() {
                Ok(piece) => Some((Ok(piece), (None, Some(rest)))),
                // The connection is aborted, so that a partial list is not mistaken for a whole one.
                Err(error) => Some((Err(error), (None, None))),
            }
        });
        let pieces =
            futures_util::StreamExt::map(pieces, |piece: io::Result<Vec<u8>>| piece.map(axum::body::Bytes::from));
        Ok((json, Body::from_stream(admission::until(pieces, ended))).into_response())
    }
}

impl<T, W, S> Rest<T, W, S>
where
    T: Stored + Send + 'static,
    W: Fn(&Caller, &T) -> bool + Send + 'static,
    S: Fn(&App, &Record<T>) -> serde_json::Result<Vec<u8>> + Send + 'static,
{
    /// Returns the next piece, with the rights that the caller has now.
    fn next(&mut self) -> io::Result<Vec<u8>> {
        let lost = |error: &super::error::ApiError| {
            io::Error::new(io::ErrorKind::PermissionDenied, error.message().to_owned())
        };
        self.caller = self.caller.again(&self.app).map_err(|error| lost(&error))?;
        self.piece().map_err(io::Error::other)
    }

    fn piece(&mut self) -> Result<Vec<u8>, StoreError> {
        blocking::run(|| {
            let mut piece = Vec::new();
            while piece.len() < PIECE_BYTES {
                let Some(key) = self.keys.next() else {
                    piece.extend_from_slice(if self.has_begun {
                        &self.list.brackets[1..]
                    } else {
                        &self.list.brackets
                    });
                    self.has_ended = true;
                    break;
                };
                let record = self.app.store.valid::<T>(&key)?;
                let Some(record) = record.filter(|record| (self.list.wanted)(&self.caller, &record.value)) else {
                    continue;
                };
                piece.push(if self.has_begun { b',' } else { self.list.brackets[0] });
                self.has_begun = true;
                piece.append(&mut (self.list.shown)(&self.app, &record)?);
            }
            Ok(piece)
        })
    }
}
