//! Deletions that a replica knows of.

use std::collections::HashMap;

use gravwell_model::codec::admin::{DeletionInfo, DeletionsInfo, Request};
use gravwell_model::deletions::Named;
use gravwell_model::{LineageEntry, Seq};

use crate::client::{Client, Piece};
use crate::error::CtlError;

/// Deletions known to the replica's state.
#[derive(Default)]
pub(crate) struct Deletions {
    pub(crate) complete_after: Seq,
    /// Sequence up to which deletions were requested.
    pub(crate) seq: Seq,
    pub(crate) rows: HashMap<Named, Seq>,
    /// Lineage of the log that the replica follows.
    pub(crate) lineage: Vec<LineageEntry>,
}

impl Deletions {
    /// Requests new deletions. Returns `false` if the replica followed a different log in between; all deletions are
    /// then requested again.
    pub(crate) async fn renew(&mut self, client: &Client) -> Result<bool, CtlError> {
        let former = std::mem::take(&mut self.lineage);
        self.ask(client).await?;
        if self.seq == Seq::ZERO || former.is_empty() || former == self.lineage {
            return Ok(true);
        }
        *self = Deletions::default();
        self.ask(client).await?;
        Ok(false)
    }

    /// Returns whether an object is among the recent deletions.
    pub(crate) fn has(&self, name: &Named) -> bool {
        self.rows.contains_key(name)
    }

    async fn ask(&mut self, client: &Client) -> Result<(), CtlError> {
        let (mut rows, mut head) = (Vec::new(), None);
        client
            .each(&Request::Deletions { after: self.seq }, |piece| {
                if let Piece::Item(item) = piece {
                    match head {
                        None => head = Some(serde_json::from_slice::<DeletionsInfo>(&item).map_err(CtlError::new)?),
                        Some(_) => rows.push(serde_json::from_slice::<DeletionInfo>(&item).map_err(CtlError::new)?),
                    }
                }
                Ok(())
            })
            .await?;
        let head = head.ok_or_else(|| CtlError::new("the replica sent no list of deletions"))?;
        (self.complete_after, self.seq, self.lineage) = (head.complete_after, head.seq, head.lineage);
        self.rows.extend(rows.into_iter().map(|row| ((row.collection, row.key), row.seq)));
        Ok(())
    }
}
