export type { LicenseOptions } from "./api.js";
export type { UpgradeResult } from "./client.js";
export type { LinkComponent, Urgency } from "./context.js";
export { LicenseError, PaymentRequiredError } from "./errors.js";
export { DENIED_EVENT, REFRESH_EVENT } from "./events.js";
export { FeatureGate, type FeatureGateProps } from "./FeatureGate.js";
export {
  type LicenseHook,
  type Offer,
  type UpgradeHook,
  useFeature,
  useLicense,
  useOffer,
  useOffers,
  useUpgrade,
  useUsage,
} from "./hooks.js";
export {
  LicenseProvider,
  type LicenseProviderProps,
} from "./LicenseProvider.js";
export { NAVIGATION, type NavigationEntry } from "./modules.js";
export { useNavigation } from "./navigation.js";
export { PaymentRequiredPrompt } from "./PaymentRequiredPrompt.js";
export { licensedFetch, paymentRequired } from "./paymentRequired.js";
export type { Connection, LicenseState, Standing, Usage } from "./state.js";
export type {
  DenialReason,
  License,
  LicenseMessage,
  Offers,
  Plan,
  Refusal,
  ThresholdMessage,
  WebSocketMessage,
} from "./types.js";
export {
  type PromptContent,
  UpgradePrompt,
  type UpgradePromptProps,
} from "./UpgradePrompt.js";
export {
  UsageLimitReached,
  type UsageLimitReachedProps,
} from "./UsageLimitReached.js";
