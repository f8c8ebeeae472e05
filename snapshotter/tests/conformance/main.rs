//! What a client of `containerd.services.snapshots.v1` may expect, over a factory of four backends: an in-memory model, the
//! engine over its store, our daemon over its socket, and containerd's own overlayfs (or us behind containerd) where one
//! is named, so that every expectation is proved against the reference. The first three run in every test.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on has failed

#[path = "../reference/mod.rs"]
mod reference;
#[path = "../rig/mod.rs"]
mod rig;
mod scenarios;
mod subject;

use subject::Subject;

macro_rules! on {
    ($backend:ident: $($room:ident::$name:ident),* $(,)?) => {$(
        #[tokio::test]
        async fn $name() {
            crate::scenarios::$room::$name(&mut crate::Subject::$backend(stringify!($name))).await;
        }
    )*};
}

/// Runs a scenario, and notes its name when it fails.
macro_rules! on_containerd {
    ($failed:ident, $room:ident::$name:ident) => {
        let mut subject = Subject::containerd(stringify!($name)).await;
        let scenario = tokio::spawn(async move { scenarios::$room::$name(&mut subject).await }).await;
        let outcome = if scenario.is_ok() { "ok" } else { "FAILED" };
        rig::report(&format!("reference: {} ... {outcome}", stringify!($name)));
        $failed.extend(scenario.is_err().then_some(stringify!($name)));
    };
}

/// `records` are scenarios of names, kinds, labels and times; `directories` write to what a mount names, and perform
/// mounts where they are called privileged.
macro_rules! conformance {
    (records { $($records:ident::$record:ident),* $(,)? }
     directories { $($rooms:ident::$directory:ident),* $(,)? }) => {
        mod model {
            on!(model: $($records::$record),*);

            #[test]
            fn names_what_it_cannot_run() {
                let skipped = [$(stringify!($directory)),*];
                crate::rig::report(&format!(
                    "conformance: {} scenarios on 4 backends; {} more need directories, which the model has not: {}",
                    [$(stringify!($record)),*].len(),
                    skipped.len(),
                    skipped.join(", "),
                ));
            }
        }

        mod store {
            on!(store: $($records::$record,)* $($rooms::$directory),*);
        }

        mod privileged_daemon {
            on!(daemon: $($records::$record,)* $($rooms::$directory),*);
        }

        /// Needs a containerd that serves at the socket in `CAPSULE_TEST_CONTAINERD`; its snapshotter is the one in
        /// `CAPSULE_TEST_SNAPSHOTTER`, else overlayfs.
        #[tokio::test]
        #[ignore = "needs a containerd: CAPSULE_TEST_CONTAINERD=SOCKET cargo test -- --ignored"]
        async fn reference() {
            let mut failed: Vec<&str> = Vec::new();
            $(on_containerd!(failed, $records::$record);)*
            $(on_containerd!(failed, $rooms::$directory);)*
            assert!(failed.is_empty(), "{failed:?}");
        }
    };
}

conformance! {
    records {
        lifecycle::a_layer_is_prepared_committed_and_built_upon,
        lifecycle::a_parent_with_children_stays,
        lifecycle::keys_can_be_used_again,
        lifecycle::keys_and_names_share_one_space,
        lifecycle::keys_may_hold_any_text,
        lifecycle::cleanup_takes_nothing_that_is_known,
        lifecycle::times_are_those_of_the_calls,
        lifecycle::commit_replaces_labels_and_times,
        lifecycle::a_parent_given_at_prepare_stays,
        mistakes::nothing_is_found_where_nothing_is,
        mistakes::what_is_taken_stays_taken,
        mistakes::parents_must_be_committed,
        mistakes::only_active_snapshots_are_committed,
        mistakes::committed_snapshots_have_no_mounts,
        mistakes::empty_keys_are_refused,
        mistakes::only_labels_can_be_updated,
        mistakes::malformed_filters_are_refused,
        labels::updates_follow_their_field_paths,
        labels::keys_of_labels_may_have_dots,
        labels::labels_have_a_size_limit,
        labels::labels_may_be_many,
        labels::key_and_value_count_together_and_each_label_alone,
        labels::labels_without_a_value_are_none,
        labels::labels_need_a_key,
        labels::an_update_looks_for_the_snapshot_first,
        listings::listings_filter_as_containerd_does,
        listings::a_listing_says_what_stat_says_by_key,
        listings::long_listings_come_whole_and_in_blocks,
        clients::of_many_that_prepare_one_key_one_wins,
        clients::of_many_that_commit_one_name_one_wins,
        clients::a_parent_is_removed_or_built_upon_and_not_both,
    }
    directories {
        layers::mounts_are_a_bind_or_an_overlay,
        layers::a_commit_can_name_the_parent,
        layers::usage_counts_allocated_bytes_and_links_once,
        layers::usage_of_committed_snapshots_does_not_change,
        layers::privileged_the_root_keeps_its_owner,
        layers::privileged_130_layers_are_one_tree,
        layers::privileged_views_cannot_be_written_to,
        idmaps::privileged_mapped_ids_are_asked_for_by_labels,
        idmaps::malformed_id_mappings_are_refused,
        trees::privileged_whiteouts_and_contents_show_through_mounts,
        trees::privileged_removed_and_replaced_files_are_marked_as_overlayfs_does,
        trees::privileged_files_of_every_kind_come_out_as_they_went_in,
        trees::privileged_attributes_of_overlayfs_itself_can_be_nested,
        clients::many_clients_at_once_lose_nothing,
    }
}
