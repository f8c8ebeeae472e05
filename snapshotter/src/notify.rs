//! Telling the service manager where this process is in its life (sd_notify(3)).
