//! What may come in and go out: detectors of patterns and personal data, sizes, and schemas of replies. Pure functions over texts and
//! JSON; `inference` applies them.
