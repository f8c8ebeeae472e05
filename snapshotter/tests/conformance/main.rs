//! What a client of `containerd.services.snapshots.v1` may expect, over a factory of backends: our service over its
//! socket in every run, and containerd's own overlayfs (or us behind containerd) where one is named, so that every
//! expectation is proved against the reference.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on has failed

mod scenarios;
mod subject;

use subject::Subject;

macro_rules! conformance {
    ($($name:ident),* $(,)?) => {
        mod ours {
            $(
                #[tokio::test]
                async fn $name() {
                    super::scenarios::$name(&mut super::Subject::ours(stringify!($name)).await).await;
                }
            )*
        }

        /// Needs a containerd that serves at the socket in `CAPSULE_TEST_CONTAINERD`; its snapshotter is the one in
        /// `CAPSULE_TEST_SNAPSHOTTER`, else overlayfs.
        #[tokio::test]
        #[ignore = "needs a containerd: CAPSULE_TEST_CONTAINERD=SOCKET cargo test -- --ignored"]
        async fn reference() {
            $(scenarios::$name(&mut Subject::reference(stringify!($name)).await).await;)*
        }
    };
}

conformance!(
    a_layer_is_prepared_committed_and_built_upon,
    mounts_are_a_bind_or_an_overlay,
    mistakes_have_containerds_codes,
    a_parent_with_children_stays,
    keys_can_be_used_again,
    updates_follow_their_field_paths,
    labels_have_a_size_limit,
    commit_replaces_labels_and_times,
    listings_filter_as_containerd_does,
    long_listings_come_whole,
    usage_counts_allocated_bytes_and_links_once,
    a_commit_can_name_the_parent,
    a_parent_given_at_prepare_stays,
    privileged_the_root_keeps_its_owner,
    privileged_mapped_ids_are_asked_for_by_labels,
    malformed_id_mappings_are_refused,
    privileged_whiteouts_and_contents_show_through_mounts,
    many_clients_at_once_lose_nothing,
);
