//! Execution of operations on a search, here or at the webserver that holds the results. The latter checks the user's
//! rights in its own state.

mod body;
mod peer;
mod perform;

pub(super) use peer::Asked;
pub(super) use perform::{Answer, Deed, PAGE_ROWS_MAX, Page, PageRow, Saving, Standing, Told, Who, perform};

use gravwell_objects::StoreError;
use gravwell_objects::searches::Search;
use gravwell_objects::sharing::{Principal, Shareable};
use gravwell_objects::store::Author;

use super::app::{App, AppRef};
use super::caller::Caller;
use super::error::{ApiError, ApiResult};

/// Returns a search that the caller may read.
pub(super) fn found(app: &AppRef, who: &Who, id: &str) -> ApiResult<Search> {
    let record = match app.store.get::<Search>(id) {
        // The owner of an invalid search is unknown.
        Err(StoreError::Invalid { .. }) if !who.person.admin => None,
        record => record?.map(|record| record.value),
    };
    let readable = record.filter(|search| search.is_readable_by(&who.person));
    readable.ok_or_else(|| ApiError::not_found(format!("search {id} that you may see")))
}

/// Returns whether a user may still read a search; one that was deleted during a download is sent to its end.
pub(super) fn is_open_to(app: &App, person: &Principal, id: &str) -> bool {
    match app.store.get::<Search>(id) {
        Ok(record) => record.is_none_or(|record| record.value.is_readable_by(person)),
        Err(_) => false,
    }
}

/// Returns a search that the caller may change.
pub(super) fn owned(app: &AppRef, who: &Who, id: &str) -> ApiResult<Search> {
    let search = found(app, who, id)?;
    if search.is_owned_by(&who.person) {
        return Ok(search);
    }
    Err(ApiError::forbidden("only the owner and administrators may do this to a search"))
}

impl From<&Caller> for Who {
    fn from(caller: &Caller) -> Who {
        Who { person: caller.person.clone(), author: caller.author() }
    }
}

/// Performs an operation here if the results are here, otherwise at the webserver that holds them.
pub(super) async fn anywhere(app: &AppRef, who: &Who, id: &str, deed: Deed) -> ApiResult<Answer> {
    let search = if deed.is_change() { owned(app, who, id)? } else { found(app, who, id)? };
    if app.searches.is_here(&search) {
        return perform(app, who, search, deed).await;
    }
    peer::ask(app, who, &search, deed).await
}

/// Returns the author of an action that is performed here for a user of another webserver.
fn author_via(uid: i32, user: String, from: &str, su: &str) -> Author {
    Author { uid, user, from: from.to_owned(), su: su.to_owned(), ..Author::default() }
}
