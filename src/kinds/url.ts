export { canonicalUrl } from '../crawl/url.js';
