//! Why a report could not be made.

/// The inputs are checked values, so these are faults of the drawing libraries rather than of the user.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("the embedded font cannot be read")]
    Font,
    #[error("`{figure}` cannot be drawn: {reason}")]
    Drawing { figure: &'static str, reason: String },
    #[error("`{figure}` cannot be encoded as PNG")]
    Encoding {
        figure: &'static str,
        #[source]
        source: png::EncodingError,
    },
}
