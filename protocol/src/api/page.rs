//! Lists that come in pages.

use serde::{Deserialize, Serialize};

use super::{
    ApiKeyView, ClusterView, EventView, ImageKeyView, ImageView, MachineView, RunView, TokenView,
    WorkflowView,
};

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Pass as `?after=` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

// The API's document names these: what utoipa derives for a generic type is ambiguous as soon as
// a crate is linked that has paths of its own (as `tough` does).

/// Machines.
pub type MachinePage = Page<MachineView>;
/// Runs.
pub type RunPage = Page<RunView>;
/// Workflows.
pub type WorkflowPage = Page<WorkflowView>;
/// Events.
pub type EventPage = Page<EventView>;
/// Tokens.
pub type TokenPage = Page<TokenView>;
/// Clusters.
pub type ClusterPage = Page<ClusterView>;
/// Images.
pub type ImagePage = Page<ImageView>;
/// Ingests.
pub type IngestPage = Page<super::IngestView>;
/// Keys that sign images.
pub type ImageKeyPage = Page<ImageKeyView>;
/// API keys.
pub type ApiKeyPage = Page<ApiKeyView>;

#[cfg(feature = "openapi")]
mod openapi {
    use std::borrow::Cow;

    use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Schema, Type};
    use utoipa::openapi::{Ref, RefOr};
    use utoipa::{PartialSchema, ToSchema};

    use super::Page;

    impl<T: ToSchema> PartialSchema for Page<T> {
        fn schema() -> RefOr<Schema> {
            let items = ArrayBuilder::new()
                .description(Some("The items."))
                .items(Ref::from_schema_name(T::name()));
            let next = ObjectBuilder::new()
                .schema_type(utoipa::openapi::schema::SchemaType::from_iter([
                    Type::String,
                    Type::Null,
                ]))
                .description(Some(
                    "Pass as `?after=` for the next page; absent on the last.",
                ));
            ObjectBuilder::new()
                .description(Some("One page of a list."))
                .property("items", items)
                .property("next", next)
                .required("items")
                .into()
        }
    }

    impl<T: ToSchema> ToSchema for Page<T> {
        fn name() -> Cow<'static, str> {
            format!("Page_{}", T::name()).into()
        }

        fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
            schemas.push((T::name().into_owned(), T::schema()));
            T::schemas(schemas);
        }
    }
}
