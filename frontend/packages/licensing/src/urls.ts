/** Where links may lead: what comes from outside is followed by visitors. */

/** No page has this origin. */
const NOWHERE = "https://page.invalid";

/** A URL that a link may have: of the web, or a path of the page's own origin. null: `javascript:` and the like. */
export function webUrl(url: string): string | null {
  const parsed = parse(url);
  const isOfTheWeb = parsed?.protocol === "https:" || parsed?.protocol === "http:";
  return isOfTheWeb && (parsed.origin !== NOWHERE || url.startsWith("/")) ? url : null;
}

/** Whether it is a path of the page's own origin, as browsers read it: `//host` and `/\host` are not. */
export function isOwnPath(url: string): boolean {
  return url.startsWith("/") && parse(url)?.origin === NOWHERE;
}

/** A template's URL, `{feature}` in it replaced as the proxy does it. */
export function fillIn(template: string, feature: string): string {
  return template.replaceAll("{feature}", encodeURIComponent(wellFormed(feature)));
}

/** A text without half characters, which can be in no URL. */
export function wellFormed(text: string): string {
  return text.replace(/\p{Surrogate}/gu, "\ufffd");
}

function parse(url: string): URL | null {
  try {
    return new URL(url, NOWHERE);
  } catch {
    return null;
  }
}
