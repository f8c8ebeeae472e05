//! The gRPC services: from wire types to the engines and back, and errors to status codes.
//!
//! The only room that sees tonic's server side. No decisions are made here.
