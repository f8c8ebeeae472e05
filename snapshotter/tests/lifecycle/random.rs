//! Random sequences of operations: the engine refuses what the model refuses and holds what the model holds.

use capsuled::{dirs::Dirs, store::Store};
use proptest::prelude::*;

use super::{
    check_directories, in_memory, open,
    ops::{apply, held, observe, op, perform, refusal},
    reference::Reference,
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_does_what_the_model_does(ops in prop::collection::vec(op(), 1..60)) {
        let root = in_memory();
        let dirs = Dirs::new(root.path());
        let store = Store::with_backend(redb::backends::InMemoryBackend::new()).unwrap();
        let engine = open(store.clone(), &dirs);
        let mut model = Reference::default();
        for op in &ops {
            let expected = apply(&mut model, op).err();
            let got = perform(&engine, op).err();
            prop_assert_eq!(got.as_ref().and_then(refusal), expected, "{:?}: {:?}", op, got);
            prop_assert_eq!(got.is_some(), expected.is_some(), "{:?}: {:?}", op, got);
        }
        prop_assert_eq!(observe(&engine), held(&model));
        check_directories(&engine, &dirs);
        // A second engine on the same store, as after a restart, knows the same.
        let again = open(store, &dirs);
        prop_assert_eq!(observe(&again), held(&model));
        for name in 0..6 {
            prop_assert_eq!(again.layers("ns", &format!("{name}/name")), None);
        }
        check_directories(&again, &dirs);
    }
}
