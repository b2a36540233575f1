//! Kinds of sites that an owner may choose, in place of the whole web. Small lists of well-known domains: who chooses
//! some lends an address for these only, and a domain stands for all names below it.

use eebt_proto::HostSet;

/// One kind of sites.
pub struct Category {
    /// In the settings.
    pub name: &'static str,
    /// On the page.
    pub title: &'static str,
    /// Domains, one a line.
    domains: &'static str,
}

/// All of them.
pub const CATEGORIES: &[Category] = &[
    Category {
        name: "encyclopedias",
        title: "Encyclopedias, dictionaries and libraries",
        domains: "wikipedia.org\nwikimedia.org\nwiktionary.org\nwikidata.org\nwikibooks.org\nwikisource.org\nwikivoyage.org\n\
                  britannica.com\narchive.org\ngutenberg.org\nopenlibrary.org\nopenstreetmap.org",
    },
    Category {
        name: "news",
        title: "News",
        domains: "apnews.com\nreuters.com\nbbc.com\nbbc.co.uk\nbbci.co.uk\ndw.com\nrferl.org\nsvoboda.org\nvoanews.com\nrfi.fr\n\
                  france24.com\nlemonde.fr\nspiegel.de\nzeit.de\ntagesschau.de\ntheguardian.com\nguim.co.uk\nnytimes.com\nnyt.com\n\
                  washingtonpost.com\naljazeera.com\nelpais.com\nmeduza.io\npropublica.org",
    },
    Category {
        name: "science",
        title: "Science and health",
        domains: "arxiv.org\ndoi.org\nnature.com\nscience.org\nplos.org\nsciencedirect.com\nspringer.com\njstor.org\nieee.org\nacm.org\n\
                  ncbi.nlm.nih.gov\nnih.gov\nwho.int\ncdc.gov\nnhs.uk\nmayoclinic.org",
    },
    Category {
        name: "software",
        title: "Software and its documentation",
        domains: "github.com\ngithubusercontent.com\ngithubassets.com\ngitlab.com\ncodeberg.org\nkernel.org\ndebian.org\nubuntu.com\n\
                  fedoraproject.org\npython.org\npypi.org\npythonhosted.org\nrust-lang.org\ncrates.io\ndocs.rs\nnpmjs.com\nnpmjs.org\n\
                  mozilla.org\nstackoverflow.com\nstackexchange.com\nsstatic.net",
    },
    Category {
        name: "search",
        title: "Search",
        domains: "duckduckgo.com\nstartpage.com\nqwant.com\nmojeek.com\necosia.org\nsearch.brave.com",
    },
    Category {
        name: "rights",
        title: "Human rights and press freedom",
        domains: "amnesty.org\nhrw.org\nrsf.org\ncpj.org\naccessnow.org\neff.org\nbellingcat.com\noccrp.org\nicij.org\nun.org\nohchr.org",
    },
];

/// The category of this name.
pub fn find(name: &str) -> Option<&'static Category> {
    CATEGORIES.iter().find(|category| category.name == name)
}

/// The domains of these categories together; `None`, which is all, where none is named.
pub fn domains<'a>(names: impl Iterator<Item = &'a str>) -> Option<HostSet> {
    let mut all: Option<HostSet> = None;
    for category in names.filter_map(find) {
        // They are ours, and a test reads all of them.
        if let Ok(domains) = category.domains.parse() {
            all.get_or_insert_default().extend(domains);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_is_read_and_has_what_it_says() {
        for category in CATEGORIES {
            let domains: HostSet = category.domains.parse().unwrap();
            assert_eq!(domains.len(), category.domains.lines().count(), "{}", category.name);
        }
        assert!(domains(["encyclopedias"].into_iter()).unwrap().contains("sv.wikipedia.org"));
        assert!(domains(["search", "rights"].into_iter()).unwrap().contains("eff.org"));
        assert_eq!(domains([].into_iter()), None);
    }
}
