//! Searches: a query over sources, run on one webserver, its results kept there and told of everywhere.
//!
//! [`query`] reads what was typed; [`source`] says where rows come from, one file per kind; [`engine`] runs a query as a
//! chain of iterators that hold little; [`filter`] lets a process of its own run jq, so that what runs away can be ended;
//! [`results`] is the file in which rows are kept, [`render`] turns them into text, JSON and CSV. [`searches`] holds what
//! runs and what is kept here, and tells everybody through the log. Nothing here knows HTTP.

pub mod conditions;
pub mod control;
pub mod engine;
pub mod filter;
pub mod query;
pub mod render;
pub mod results;
pub mod row;
mod sandbox;
pub mod searches;
pub mod source;
pub mod stages;
pub mod worker;
