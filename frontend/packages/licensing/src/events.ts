/** Dispatched on `window` by anyone who knows that the licence may have changed: every provider asks for it. */
export const REFRESH_EVENT = "license:refresh";

/** Dispatched on `window` with a `PaymentRequiredError` as its detail: a call was refused for want of a licence. */
export const DENIED_EVENT = "license:denied";
