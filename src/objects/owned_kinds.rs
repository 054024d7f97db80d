//! The kinds of objects that an owner shares and whose contents belong to clients: one specification each. Docs, lists
//! and rights follow from these and from the rows of [`super::kinds`].

use super::capabilities::Capabilities;
use super::owned::{Field, Form, IdForm, NameForm, OwnedKind, Spec, Wire};

/// Members of kinds that clients identify by `ThingUUID`.
const THING: Wire = Wire {
    id: "ThingUUID",
    description: "Description",
    updated: "Updated",
    returns_whole: true,
    has_details: false,
    has_lists: false,
};

const fn field(name: &'static str, form: Form, default: &'static str) -> Field {
    Field { name, form, default, is_long: false }
}

/// A text that queries refer to by name.
pub enum Macro {}

impl OwnedKind for Macro {
    const SPEC: &'static Spec = &Spec {
        collection: "macros",
        singular: "macro",
        plural: "macros",
        path: "/api/macros",
        capabilities: Capabilities { read: "MacroRead", write: "MacroWrite" },
        id: IdForm::Number,
        name: NameForm::Identifier,
        fields: &[field("Expansion", Form::Text, "\"\"")],
        wire: Wire { id: "ID", updated: "LastUpdated", returns_whole: false, has_lists: true, ..THING },
    };
}

/// A query with variables.
pub enum Template {}

impl OwnedKind for Template {
    const SPEC: &'static Spec = &Spec {
        collection: "templates",
        singular: "template",
        plural: "templates",
        path: "/api/templates",
        capabilities: Capabilities { read: "TemplateRead", write: "TemplateWrite" },
        id: IdForm::Uuid,
        name: NameForm::Title,
        fields: &[field("Contents", Form::Object, "{}")],
        wire: Wire { has_details: true, ..THING },
    };
}

/// Actions that clients offer for matching text in results. Clients call it a pivot in paths.
pub enum Actionable {}

impl OwnedKind for Actionable {
    const SPEC: &'static Spec = &Spec {
        collection: "actionables",
        singular: "actionable",
        plural: "actionables",
        path: "/api/pivots",
        capabilities: Capabilities { read: "PivotRead", write: "PivotWrite" },
        id: IdForm::Uuid,
        name: NameForm::Title,
        fields: &[field("Contents", Form::Object, "{}"), field("Disabled", Form::Flag, "false")],
        wire: Wire { returns_whole: false, has_details: true, ..THING },
    };
}

/// A query of the library.
pub enum SavedQuery {}

impl OwnedKind for SavedQuery {
    const SPEC: &'static Spec = &Spec {
        collection: "saved-queries",
        singular: "saved query",
        plural: "saved queries",
        path: "/api/library",
        capabilities: Capabilities { read: "LibraryRead", write: "LibraryWrite" },
        id: IdForm::Uuid,
        name: NameForm::Title,
        fields: &[field("Query", Form::Text, "\"\""), field("Metadata", Form::Object, "{}")],
        wire: THING,
    };
}

/// A document with queries and links.
pub enum Playbook {}

impl OwnedKind for Playbook {
    const SPEC: &'static Spec = &Spec {
        collection: "playbooks",
        singular: "playbook",
        plural: "playbooks",
        path: "/api/playbooks",
        capabilities: Capabilities { read: "PlaybookRead", write: "PlaybookWrite" },
        id: IdForm::Uuid,
        name: NameForm::Title,
        fields: &[
            Field { is_long: true, ..field("Body", Form::Bytes, "\"\"") },
            field("Metadata", Form::ObjectBytes, "\"e30=\""),
            field(
                "Author",
                Form::Texts(&["Name", "Email", "Company", "URL"]),
                r#"{"Company":"","Email":"","Name":"","URL":""}"#,
            ),
        ],
        wire: Wire { id: "UUID", description: "Desc", updated: "LastUpdated", returns_whole: false, ..THING },
    };
}
